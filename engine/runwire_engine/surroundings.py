"""What every run of one worker is given."""

from dataclasses import dataclass

from runwire._log_line import LogLevel
from runwire_engine.bridge import Bridge
from runwire_engine.children import Children
from runwire_engine.engine import Engine
from runwire_engine.inputs import InputBells
from runwire_engine.wait_tokens import WaitTokens


@dataclass(frozen=True)
class Surroundings:
    """The engine, the environment, the engine's loop, and the way to children."""

    engine: Engine
    environment_id: int
    environment: str
    # The engine's loop.
    bridge: Bridge
    children: Children
    tokens: WaitTokens
    inputs: InputBells
    # The least urgent lines that logs hold.
    log_level: LogLevel = "info"
