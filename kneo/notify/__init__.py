"""Notifications: an outbox, written in the transaction of the change, and the channels that deliver its messages."""
