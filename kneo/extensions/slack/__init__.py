"""Slack: a notification channel whose buttons decide questions, where the environment allows it, and the route of the buttons."""

from kneo.service.mounts import Mount

ROUTES = Mount("kneo.extensions.slack.routes:router")
