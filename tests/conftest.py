import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from textautograd.engines import LiteLLM

sys.path.insert(0, str(Path(__file__).parent))  # tests share a fault server

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


def pytest_configure() -> None:
    """Ctrl-C as in a terminal: a shell has what it starts in the background ignore it, and tests of
    it would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for a file: litellm keeps its clients by loop, and is closed with it."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()
        runner.run(LiteLLM("openai/tiny").close())
