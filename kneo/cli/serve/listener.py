"""The listening socket of a process: bound before anything starts, so that a taken port changes nothing."""

from __future__ import annotations

import errno
import socket

from kneo.errors import Conflict, KneoError, Usage

BACKLOG = 2048
"""Connections that may wait to be accepted."""


class Listener:
    """A bound TCP socket. Connections are refused until ``listen`` is called.

    Args:
        host: The address of this machine to bind.
        port: The port; 0 selects a free one.
        host_setting: Where the user chose the address: an option or a variable; empty where the user cannot.
        port_setting: Where the user chose the port.

    Raises:
        Conflict: ``port_in_use``: another process listens at this address.
        Usage: ``address_unavailable``: this process cannot listen at this address.
    """

    def __init__(self, host: str, port: int, *, host_setting: str = "--host", port_setting: str = "--port") -> None:
        self._host, self._port = host, port
        self._host_setting, self._port_setting = host_setting, port_setting
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.socket.family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.socket.bind((host, port))
        except OSError as error:
            self.close()
            raise self._refusal(error) from error

    def listen(self) -> socket.socket:
        """Accept connections from now on.

        Raises:
            Conflict: ``port_in_use``: another process bound the port at the same time and listens already.
        """
        try:
            self.socket.listen(BACKLOG)
        except OSError as error:
            raise self._refusal(error) from error
        return self.socket

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"http://{self._shown}:{self.port}"

    @property
    def _shown(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host

    def close(self) -> None:
        self.socket.close()

    def _refusal(self, error: OSError) -> KneoError:
        if error.errno == errno.EADDRINUSE:
            msg = f"{self._shown}:{self._port} is in use: another program listens there, perhaps another Kneo."
            hint = (
                f"Find it with lsof -nP -iTCP:{self._port} -sTCP:LISTEN (or ss -ltnp) and stop it, "
                f"or choose another port with {self._port_setting}."
            )
            return Conflict(msg, code="port_in_use", hint=hint, host=self._host, port=self._port)
        msg = f"Kneo cannot listen on {self._shown}:{self._port}: {error.strerror}."
        hint = f"Choose an address of this machine with {self._host_setting}, and a port that this user may open with {self._port_setting}."
        if not self._host_setting:
            hint = f"Choose a port that this user may open with {self._port_setting}."
        return Usage(msg, code="address_unavailable", hint=hint, host=self._host, port=self._port)
