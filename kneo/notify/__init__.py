"""Words to people: an outbox that is filled in the transaction of what happened, and the channels that empty it."""
