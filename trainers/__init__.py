"""SFT and GRPO step loops on torch and accelerate. No Ray; imports nothing above the library."""
