"""The cost of a turn of an agent, beside other libraries."""
