"""What tests do with the console in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Console:
    """The console in a page of the browser.

    Attributes:
        page: what Playwright drives.
        url: of the server.
    """

    page: Any
    url: str

    def open(self, place: str = "tasks") -> None:
        """Go to a place of the console, and wait until it is there."""
        self.page.goto(f"{self.url}/#/{place}")
        self.settled()

    def settled(self) -> None:
        """Wait until the page has been drawn."""
        self.page.locator("main:not([aria-busy])").wait_for()

    def press(self, name: str) -> None:
        """Press the first button whose name begins with these words."""
        self.page.get_by_role("button", name=name).first.click()

    def agree(self) -> None:
        """Do what the open dialog asks about, and wait until it is done."""
        self.page.locator("dialog button[type=submit]").click()
        self.page.locator("dialog").wait_for(state="detached")

    def sign_in(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.press("Sign in")

    def sees(self, text: str) -> None:
        """Wait until a text is seen in the page's main part or in a dialog."""
        self.page.locator("main, dialog").get_by_text(text).first.wait_for()

    def run(self, module: str, function: str, argument: Any) -> Any:
        """What a function gives that gets a module of the console and one argument."""
        self.open()
        source = f"async (argument) => ({function})(await import('{self.url}/console/{module}'), argument)"
        return self.page.evaluate(source, argument)
