"""A headless Chromium that opens a report and tells what it logged and asked the network for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-default-apps", "--disable-extensions"),
    *("--no-default-browser-check", "--metrics-recording-only", "--hide-scrollbars"),
)
_OWN = ("file://", "data:", "blob:", "about:")
"""What opening the file itself, its icon and its downloads need; anything else is a connection."""


class Browser:
    """One page at a time; what it does is recorded from the first byte on."""

    def __init__(self, driver: Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads
        self.console: list[str] = []
        self.requests: list[str] = []

    def open(self, file: Path, fragment: str = "") -> None:
        """Open a report and wait until it is drawn."""
        self.driver.get("about:blank")  # else another fragment would not load it anew
        self._collect()
        self.console, self.requests = [], []
        self.driver.get(f"{file.resolve().as_uri()}{fragment}")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, past its policy, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The text of the first element as people see it."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def emulate(self, *, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """The size of the window in CSS pixels, and the colours that the reader prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; the test's own limit of time ends it otherwise."""
        WebDriverWait(self.driver, 60).until(lambda _: is_so())

    def assert_silent(self) -> None:
        """No message on the console, and no request beyond the file itself."""
        self._collect()
        assert self.console == []
        assert [url for url in self.requests if not url.startswith(_OWN)] == []

    def _collect(self) -> None:
        for entry in self._log("browser"):
            self.console.append(f"{entry['level']}: {entry['message']}")
        for entry in self._log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = event["params"]
                self.requests.append(parameters.get("url") or parameters["request"]["url"])
            elif event["method"] == "Runtime.exceptionThrown":
                self.console.append(str(event["params"]["exceptionDetails"]))

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return found


@contextmanager
def started_browser(folder: Path) -> Iterator[Browser]:
    """Debian's Chromium with an empty profile in `folder`. Fails where it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "these tests need Chromium; apt-get install chromium chromium-driver"
    assert driver, "these tests need chromedriver; apt-get install chromium-driver"
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    downloads = folder / "downloads"
    downloads.mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options, Service(driver))
    try:
        allowed = {"behavior": "allow", "downloadPath": str(downloads)}
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        yield Browser(chrome, downloads)
    finally:
        chrome.quit()
