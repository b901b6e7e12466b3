"""What a run leaves behind: the trajectory log, the summary, terminal progress and the HTML report.

Nothing here steers a run: every module reads what happened. Called by the composition roots and the command line.
"""
