"""What an operator may turn: bounded, read from the environment, and what the hub then does."""

from dataclasses import fields

import pytest
from pydantic import ValidationError

from runwire_realtime.hub_settings import HubSettings
from runwire_realtime.limits import HubLimits


def test_the_defaults_are_those_of_the_hub() -> None:
    assert HubSettings().limits() == HubLimits()


def test_every_variable_of_the_environment_reaches_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {name: 11.0 for name in HubSettings.model_fields if not name.startswith("ping_")}
    for name, value in given.items():
        monkeypatch.setenv(f"RUNWIRE_{name.upper()}", f"{value:g}")
    limits = HubSettings().limits()
    turned = [each.name for each in fields(limits) if getattr(limits, each.name) == 11.0]
    assert len(turned) == len(given)


@pytest.mark.parametrize("name", list(HubSettings.model_fields))
def test_a_value_out_of_bounds_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("-1", "1e9", "many"):
        monkeypatch.setenv(f"RUNWIRE_{name.upper()}", value)
        with pytest.raises(ValidationError, match=name):
            HubSettings()
