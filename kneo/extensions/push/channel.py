"""The channel of Web Push, which is imported where it is used."""

from __future__ import annotations

import importlib

from kneo.notify.channel_kinds import ChannelContext, ChannelKind, OpenedChannel


def open_channel(context: ChannelContext) -> OpenedChannel:
    """Return the delivery to browsers.

    Raises:
        Invalid: ``invalid_setting``: the key is not valid.
    """
    module = importlib.import_module("kneo.extensions.push.delivery")
    push: OpenedChannel = module.open_web_push(context)
    return push


KIND = ChannelKind(open_channel)
