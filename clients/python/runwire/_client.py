"""What one client holds: its HTTP pool, and one socket per credential for all subscriptions."""

from weakref import WeakSet

from runwire._http import Http
from runwire._settings import AccessToken, Settings
from runwire._socket import Socket


class Client:
    """The connections of one client, bound to the loop on which it is first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = Http(settings)
        self._sockets: dict[AccessToken | None, Socket] = {}
        self._alone: WeakSet[Socket] = WeakSet()

    def socket(self, access_token: AccessToken | None = None, *, alone: bool = False) -> Socket:
        """Return the socket of a credential; without one, of the client's own.

        `alone`: for a subscription that cannot share its socket with another one.
        """
        token = access_token or self.settings.access_token
        settings = Settings(self.settings.api_url, token)
        if alone:
            socket = Socket(settings)
            self._alone.add(socket)
            return socket
        if token not in self._sockets:
            self._sockets[token] = Socket(settings)
        return self._sockets[token]

    async def aclose(self) -> None:
        """Close every connection; subscriptions end with ConfigurationError."""
        for socket in [*self._sockets.values(), *self._alone]:
            await socket.aclose()
        self._sockets.clear()
        await self.http.aclose()
