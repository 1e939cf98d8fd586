"""Human tasks and their decisions: one state machine for the gates of runs and for promotions."""
