"""Money: an endpoint by its price list, own hardware by its price per hour. Prices are stated, never guessed."""

from collections.abc import Mapping
from typing import Any

from sizewise.core.measurement import Measurement, unmeasured

_NAME, _UNIT = "cost_usd", "USD"


def cost(seconds: float | None, usd_per_hour: float | None, machine: str = "") -> Measurement:
    """What some time on own hardware costs.

    Args:
        seconds: that the machine, or the part of it that has the price, was busy.
        usd_per_hour: price of the machine; None: unknown.
        machine: fingerprint of the machine whose time it is.
    """
    if usd_per_hour is None:
        return unmeasured(_NAME, _UNIT, "no price per hour of this machine was given")
    if seconds is None:
        return unmeasured(_NAME, _UNIT, "the time that it took is not known")
    method = f"seconds x {usd_per_hour:g} USD per hour (stated)"
    return Measurement(_NAME, _UNIT, seconds * usd_per_hour / 3600, provenance="stated", method=method, machine=machine)


def api_cost(prices: Mapping[str, Any], prompt_tokens: int | None, completion_tokens: int | None) -> Measurement:
    """What some tokens cost at an endpoint.

    Args:
        prices: `usd_per_million_input_tokens`, `usd_per_million_output_tokens`, `date`, as in the catalogue.
        prompt_tokens: tokens sent.
        completion_tokens: tokens received.
    """
    into, out = prices.get("usd_per_million_input_tokens"), prices.get("usd_per_million_output_tokens")
    if into is None or out is None:
        return unmeasured(_NAME, _UNIT, "the catalogue has no price for this model")
    if prompt_tokens is None or completion_tokens is None:
        return unmeasured(_NAME, _UNIT, "the endpoint does not tell how many tokens it counted")
    date = f" of {prices['date']}" if prices.get("date") else ""
    method = f"price list{date}: {into:g} and {out:g} USD per million tokens in and out"
    dollars = (prompt_tokens * into + completion_tokens * out) / 1e6
    return Measurement(_NAME, _UNIT, dollars, provenance="stated", method=method)
