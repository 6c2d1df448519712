"""What one client holds: its HTTP pool, and per credential the sockets for all subscriptions."""

from weakref import WeakSet

from runwire._http import Http
from runwire._settings import AccessToken, Settings
from runwire._socket import Socket
from runwire.errors import ConfigurationError


class Client:
    """The connections of one client, bound to the loop on which it is first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = Http(settings)
        self._sockets: dict[AccessToken | None, list[Socket]] = {}
        self._alone: WeakSet[Socket] = WeakSet()
        self._is_closed = False

    def socket(self, access_token: AccessToken | None = None, *, alone: bool = False) -> Socket:
        """Return a socket of a credential with room; without a credential, of the client's own.

        The server takes so many subscriptions on one socket: the next goes to a further one.
        `alone`: for a subscription that cannot share its socket with another one. Raises
        ConfigurationError once the client was closed.
        """
        if self._is_closed:
            raise ConfigurationError("this client was closed")
        token = access_token or self.settings.access_token
        settings = Settings(self.settings.api_url, token)
        if alone:
            socket = Socket(settings, self.http)
            self._alone.add(socket)
            return socket
        sockets = self._sockets.setdefault(token, [])
        for socket in sockets:
            if not socket.is_full:
                return socket
        sockets.append(Socket(settings, self.http))
        return sockets[-1]

    async def aclose(self) -> None:
        """Close every connection; subscriptions end with ConfigurationError."""
        self._is_closed = True
        shared = [socket for sockets in self._sockets.values() for socket in sockets]
        for socket in [*shared, *self._alone]:
            await socket.aclose()
        self._sockets.clear()
        await self.http.aclose()
