"""What a server says of the models that it has."""

from __future__ import annotations

import http.client
import json
import urllib.request
from typing import Any

TOLD = ("size", "n_params", "ftype")  # by llama.cpp: bytes, weights, how they are packed


def served(api_base: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What tells these models' weights from others of the same name, where the server says it."""
    try:
        with urllib.request.urlopen(f"{api_base}/models", timeout=10) as reply:
            listed = json.loads(reply.read(2**24))["data"]
        return {m["id"]: meta(m) for m in listed if m["id"] in names and meta(m)}
    except (OSError, http.client.HTTPException, RecursionError):
        return {}
    except (ValueError, LookupError, TypeError, AttributeError):  # no such list
        return {}


def meta(model: dict[str, Any]) -> dict[str, Any]:
    """Of one entry of a list of models."""
    told = model.get("meta") or {}
    return {name: told[name] for name in TOLD if name in told}
