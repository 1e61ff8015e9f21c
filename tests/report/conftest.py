"""One Chromium for the tests of this folder, and the finished run that they look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.commands.conftest import finished_run as finished_run
from tests.report.browser import Browser, started_browser


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def chromium(_browser: Browser) -> Iterator[Browser]:
    """A desktop window in light colours. After each test the page must have been silent."""
    _browser.emulate()
    yield _browser
    _browser.assert_silent()
