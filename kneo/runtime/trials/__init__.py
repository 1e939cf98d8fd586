"""Trials: runs of a bundle on a temporary database, in which no tool is called and no person is asked."""
