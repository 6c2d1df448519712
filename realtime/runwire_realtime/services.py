"""The running parts that requests are answered with; composed in app.py, nowhere else."""

from dataclasses import dataclass

from runwire_engine.engine import Engine
from runwire_engine.environments import Environments
from runwire_realtime.credentials import Credentials
from runwire_realtime.realtime import Realtime
from runwire_realtime.settings import ServerSettings
from runwire_realtime.sign_in import SignIn
from runwire_realtime.tokens import Tokens


@dataclass(frozen=True)
class Services:
    settings: ServerSettings
    engine: Engine
    environments: Environments
    realtime: Realtime
    tokens: Tokens
    credentials: Credentials
    sign_in: SignIn
    # The environment that the dashboard's sessions open.
    environment_id: int
