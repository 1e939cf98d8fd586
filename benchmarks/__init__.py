"""What this project costs, beside what it could cost at least. Numbers are for people; no test depends on them."""
