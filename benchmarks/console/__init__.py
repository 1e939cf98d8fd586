"""The pages of the console with 10,000 runs and 2,000 open tasks."""
