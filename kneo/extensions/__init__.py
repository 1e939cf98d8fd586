"""Extensions of Kneo: what only some installations use. They attach through entry points, and no other package imports them."""
