"""Makes texts safe to display and to write: without control characters and without secrets.

Secrets are the API key and the access token in the environment, and user names and passwords in
URLs. A server can send them back in any text, so completions are cleaned too.
"""

from __future__ import annotations

import base64
import os
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote, unquote

import regex

# Zero-width joiners are needed for Persian and Hindi words and for emoji.
_JOINERS = "\u200c\u200d"
HIDDEN = "[secret]"
# A shorter text, such as a password of three letters, also occurs in ordinary text.
_SHORTEST = 8
_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_URLS = ("OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_IN_URL = regex.compile(r"(?<=://)[^\s/?#@\"'<>]+(?=@)")
_seen: set[str] = set()


def printable(text: str) -> str:
    """Return the text without characters that control a terminal or the reading direction.

    Control and format characters and lone surrogates are replaced with U+FFFD. Newlines, tabs and
    zero-width joiners are kept.
    """
    return "".join(
        c
        if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else "\ufffd"
        for c in text
    )


def remember_url(url: str) -> None:
    """Treat the user name and the password in a URL as secrets, in every form of their own."""
    # Not parsed as an address, because an address that is not valid may contain secrets, too.
    rest = url.partition("://")[2] or url
    user_info, at, _ = regex.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")
    if at:
        plain = unquote(user_info)
        password = plain.partition(":")[2]
        encoded = base64.b64encode(os.fsencode(plain)).decode()
        _seen.update({user_info, plain, password, quote(os.fsencode(password), safe=""), encoded})


def without_secrets(text: str) -> str:
    """Return the text without the secrets of this process, and without user names in URLs."""
    return _IN_URL.sub(HIDDEN, without_keys(text))


def without_keys(text: str, secrets: Iterable[str] | None = None) -> str:
    """Return the text without the secrets of this process; other URLs are not changed.

    Many texts in a row are faster with ``secrets``, the result of `known_secrets`.
    """
    for secret in known_secrets() if secrets is None else secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def known_secrets() -> list[str]:
    """Return the secrets of this process that are known now, the longest first."""
    variables = (os.environ.get(name, "").strip() for name in _VARIABLES)
    for name in _URLS:
        for spelling in (name, name.lower()):
            if "@" in (url := os.environ.get(spelling, "")):
                remember_url(url)
    # A key that is one word, as some use with their own servers, also occurs in ordinary text.
    long = {secret for secret in (*variables, *_seen) if len(secret) >= _SHORTEST}
    found = {secret for secret in long if not (secret.isalpha() and secret.islower())}
    return sorted(found, key=lambda secret: (-len(secret), secret))
