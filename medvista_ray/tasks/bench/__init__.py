"""MedVista-Bench: seeded generators of verifiable questions over real pictures, split by subject."""
