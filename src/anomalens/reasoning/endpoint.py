"""One question to a language model over HTTP, for any server that speaks the chat completions of OpenAI.

    model = Model("http://127.0.0.1:8080/v1", "qwen2.5-vl-7b", cache="answers")
    answer = model.ask([Message.of("user", "What is wrong here?", Picture.of("part.png"))])

There is no default server: pictures leave the machine only for an address that was given. What a server sends back is
data: it is bounded in size, stripped of the key, and never run. One failed request is an `Answer` with a status, not an
exception; a wrong setting is a `WrongInput` before anything is sent.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import re
import threading
import time
import weakref
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from ..errors import MissingExtra, WrongInput
from ..files import write_atomic

if TYPE_CHECKING:
    import httpx
    import numpy as np

Role = Literal["system", "user", "assistant"]
Status = Literal["ok", "refused", "truncated", "api_error"]

SCHEMA = "anomalens.answer/1"  # part of the cache key; raised when the same request would be sent differently
MAX_ANSWER = 4 * 2**20  # bytes of one reply
MAX_REQUEST = 64 * 2**20  # bytes of one request, pictures included
MAX_PNG = 4 * 2**20  # bytes; a larger picture is sent as JPEG
MAX_WAIT = 60.0  # seconds between two tries, whatever the server asks for
RETRIED = frozenset({408, 409, 429})  # and every 5xx
TOP = 5  # alternatives asked for with log-probabilities


@dataclass(frozen=True)
class Picture:
    """An encoded picture; mime says what the bytes are."""

    data: bytes = field(repr=False)
    mime: str

    @classmethod
    def of(cls, source: np.ndarray | str | os.PathLike[str] | bytes, *, longest: int = 1024) -> Picture:
        """Encode a picture for sending.

        Args:
            source: (H, W, 3) or (H, W) uint8 or uint16, a file, or the bytes of a PNG, JPEG or WebP file, which are
                sent as they are.
            longest: the longer side is reduced to this many pixels; smaller pictures stay.

        Returns:
            PNG of up to 4 MB, else JPEG of quality 95; a JPEG file stays JPEG. Metadata (place, camera) is left out.

        Raises:
            Unreadable: the file is damaged. WrongInput: the bytes or the array are no picture.
        """
        from ..images import encode, read_image

        if isinstance(source, bytes):
            return cls(source, _mime(source))
        lossy = False
        if isinstance(source, (str, os.PathLike)):
            lossy = os.fspath(source).lower().endswith((".jpg", ".jpeg"))
            source = read_image(source)
        pixels = _at_most(source, longest)
        if not lossy:
            data = encode(pixels, "PNG")
            if len(data) <= MAX_PNG:
                return cls(data, "image/png")
        return cls(encode(pixels, "JPEG", quality=95), "image/jpeg")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


Part = str | Picture


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: texts and pictures in order."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, *parts: Part) -> Message:
        return cls(role, parts)

    @property
    def text(self) -> str:
        """The texts alone, one below the other."""
        return "\n".join(p for p in self.parts if isinstance(p, str))


@dataclass(frozen=True)
class Token:
    """One token of an answer: its natural log-probability, and those of the likeliest alternatives."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What came back. error: one sentence where status is not ok. tokens: only where the server gave log-probabilities.

    status: ok; refused (the server or the model withheld the answer, or it is empty); truncated (cut at max_tokens);
        api_error (no usable answer; text is empty).
    usage: tokens as the server counted them: prompt_tokens, completion_tokens. model: who answered, in its own words.
    """

    text: str
    status: Status = "ok"
    error: str = ""
    finish_reason: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    model: str = ""
    cached: bool = False


class Request(NamedTuple):
    """One call of `ask`: messages and its other arguments."""

    messages: Sequence[Message]
    options: Mapping[str, Any] = {}


class Asks(Protocol):
    """Anything that answers: `Model`, `Callable_`, or an object of yours."""

    def ask(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        json: bool = False,
        logprobs: bool = False,
    ) -> Answer: ...


@dataclass(frozen=True)
class Callable_:
    """A function of messages as a model: it returns text, or a whole Answer. name: for caches and reports."""

    function: Callable[[Sequence[Message]], str | Answer]
    name: str = "function"

    def ask(self, messages: Sequence[Message], **options: Any) -> Answer:
        said = self.function(messages)
        return said if isinstance(said, Answer) else Answer(said, model=self.name)


@dataclass
class Usage:
    """What was asked so far. requests: sent over the network, tries included; in a dry run, those that would be.

    cached: answers read from the disk. pictures, bytes: in the requests. tokens: as the server counted them.
    """

    requests: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pictures: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        counts = [(self.requests, "request"), (self.pictures, "picture")]
        sent = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in counts)
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{sent}, {self.bytes / 1e6:.2f} MB, {tokens} tokens, {self.cached} from the cache, {self.failed} failed"


def ask_all(model: Asks, requests: Iterable[Request | tuple[Sequence[Message], Mapping[str, Any]]]) -> Iterator[Answer]:
    """Answers in the order of the requests, `model.concurrency` at once (1 where it has none).

    Requests are drawn as answers are taken, so that a long list of pictures is never in memory as a whole.
    """
    concurrency = getattr(model, "concurrency", 1)
    waiting: deque[Future[Answer]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ask")
    try:
        for messages, options in requests:
            waiting.append(pool.submit(model.ask, messages, **options))
            if len(waiting) >= 2 * concurrency:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class Model:
    """A model behind a server that speaks `POST {base_url}/chat/completions`.

    base_url: as a rule it ends in /v1. name: what the server calls the model.
    key, key_env: the key itself, or the name of the environment variable that holds it (better: it is in no script);
        neither for a server without keys. It goes to this server alone and is kept out of caches, messages and reprs.
    timeout: seconds to connect, between two pieces, and for a whole answer. retries: further tries after 408, 409, 429,
        5xx, a timeout or a broken connection, 1, 2, 4, ... seconds apart or as the server asks. concurrency: requests
        at once. max_tokens: of an answer.
    cache: a folder of answers; None keeps none. dry_run: counts in `usage` what would be sent, and sends nothing.
    extra: further fields of each request, e.g. {"reasoning_effort": "low"}; a value of None leaves a field out, e.g.
        {"temperature": None} for models that refuse one.
    """

    base_url: str
    name: str
    key: str | None = field(default=None, repr=False)
    key_env: str | None = None
    timeout: float = 60.0
    retries: int = 3
    concurrency: int = 4
    max_tokens: int = 2048
    cache: str | os.PathLike[str] | None = None
    dry_run: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)
    usage: Usage = field(default_factory=Usage, init=False, compare=False)

    def __post_init__(self) -> None:
        self.base_url = _checked_url(self.base_url)
        if not self.name:
            raise WrongInput("a model needs the name under which the server knows it (name=...); got none.")
        if self.key and self.key_env:
            raise WrongInput("a key comes from `key` or from the environment variable `key_env`; both were given.")
        for setting, least in (("timeout", 0), ("retries", 0), ("concurrency", 1), ("max_tokens", 1)):
            value = getattr(self, setting)
            if not math.isfinite(value) or value < least or (setting == "timeout" and value == 0):
                raise WrongInput(f"{setting} is {value}; at least {least or 'a positive number'} was expected.")
        try:
            dumps(self.extra)
        except (TypeError, ValueError, RecursionError):
            raise WrongInput("extra holds what JSON cannot; give texts, numbers, lists and dicts.") from None
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._refused: frozenset[str] = frozenset()  # fields this server does not know
        self._secret = ""

    def ask(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        json: bool = False,
        logprobs: bool = False,
    ) -> Answer:
        """One answer, from the cache where the same was asked before.

        json: asks for a JSON object where the server can force one. logprobs: asks for log-probabilities of the tokens.

        Raises:
            WrongInput: the key's environment variable is not set. MissingExtra: httpx is not installed.
            CannotWrite: the cache's folder refuses.
        """
        options = {
            "model": self.name,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "max_tokens": self.max_tokens if max_tokens is None else max_tokens,
            "response_format": {"type": "json_object"} if json else None,
            "logprobs": True if logprobs else None,
            "top_logprobs": TOP if logprobs else None,
            **self.extra,
        }
        options = {k: v for k, v in options.items() if v is not None}
        path = self._path(messages, options)
        known = _read_answer(path) if path else None
        if known:
            with self._lock:
                self.usage.cached += 1
            return known
        pictures = sum(isinstance(p, Picture) for m in messages for p in m.parts)
        try:
            answer = _understood(self._send(messages, options, pictures))
        except _Failed as problem:
            answer = Answer("", "api_error", str(problem))
        with self._lock:
            self.usage.failed += answer.status == "api_error" and not self.dry_run
            self.usage.prompt_tokens += answer.usage.get("prompt_tokens", 0)
            self.usage.completion_tokens += answer.usage.get("completion_tokens", 0)
        if path and answer.status != "api_error":
            write_atomic(path, dumps({"schema": SCHEMA, **_plain(answer)}, sort_keys=True))
        return answer

    def ask_all(self, requests: Iterable[Request | tuple[Sequence[Message], Mapping[str, Any]]]) -> Iterator[Answer]:
        """Answers in the order of the requests, `concurrency` at once; a failed one has the status api_error."""
        return ask_all(self, requests)

    # The network, from a request to decoded JSON.

    def _send(self, messages: Sequence[Message], options: dict[str, Any], pictures: int) -> Any:
        """Decoded reply. Fields that this server refuses with a 400 are left out and asked for no more."""
        refused = self._refused
        while True:
            body = {**_without(options, refused), "messages": [_as_json(m) for m in messages]}
            content = dumps(body).encode()
            if len(content) > MAX_REQUEST:
                size = f"{len(content) / 2**20:.0f} MiB, over the limit of {MAX_REQUEST // 2**20}"
                raise _Failed(f"the request has {size}; send fewer or smaller pictures.")
            try:
                reply = self._insist(content, pictures)
            except _Rejected as problem:
                more = _fields_to_drop(problem.said, options) - refused
                if not more:
                    raise
                refused |= more
                continue
            self._refused = self._refused | refused
            return reply

    def _insist(self, content: bytes, pictures: int) -> Any:
        """Send until it works, or as often as `retries` allows."""
        if self.dry_run:
            self._count(content, pictures)
            raise _Failed("dry run: nothing was sent.")
        for tried in itertools.count():
            try:
                self._count(content, pictures)
                return self._once(content)
            except _Retry as problem:
                if tried == self.retries:
                    times = "" if tried == 0 else f" ({tried + 1} tries)"
                    raise _Failed(f"{problem}{times}.") from None
                wait = 2.0**tried * random.uniform(0.8, 1.2) if problem.wait is None else problem.wait
                self.sleep(min(max(wait, 0.0), MAX_WAIT))

    def _once(self, content: bytes) -> Any:
        client = self._connect()
        url = f"{self.base_url}/chat/completions"
        deadline = time.monotonic() + self.timeout
        with _network_errors(self.base_url, self.timeout, self._scrubbed):
            for _ in range(4):
                with client.stream("POST", url, content=content) as response:
                    target = response.headers.get("location")
                    if response.status_code in (301, 302, 307, 308) and target:
                        there = response.url.join(target)
                        if _origin(str(there)) != _origin(url):
                            other = self._scrubbed(f"{there.scheme}://{there.netloc.decode()}")
                            raise _Failed(
                                f"the server at {self.base_url} redirects to another one ({other}), which is not "
                                "followed; give that address as base_url if you trust it."
                            )
                        url = str(there)
                        continue
                    return self._decoded(response, _bounded(response, deadline, self.base_url))
        raise _Failed(f"the server at {self.base_url} redirects in a circle; check base_url.")

    def _decoded(self, response: httpx.Response, data: bytes) -> Any:
        code = response.status_code
        kind = response.headers.get("content-type", "no content type").split(";")[0]
        try:
            said = self._scrubbed(loads(data))
        except (ValueError, RecursionError):
            said = None
        if code == 200 and said is not None:
            return said
        where = f"the server at {self.base_url}"
        if code == 200:
            what = "not valid JSON" if "json" in kind else f"{_shown(self._scrubbed(kind))} instead of JSON"
            raise _Failed(f"{where} answered with {what}; base_url as a rule ends in /v1.")
        detail = _shown(_error_text(said)) if said is not None else ""
        try:
            phrase = f"{code} ({HTTPStatus(code).phrase})"
        except ValueError:
            phrase = str(code)
        sentence = f"{where} answered {phrase}" + (f": {detail}" if detail else "")
        if code in RETRIED or code >= 500:
            raise _Retry(sentence, _asked_wait(response.headers.get("retry-after")))
        if code in (400, 422):
            raise _Rejected(f"{sentence}.", dumps(said))
        advice = {401: "check the key", 403: "check the key", 404: "check base_url and the model's name"}.get(code)
        raise _Failed(f"{sentence}; {advice}." if advice else f"{sentence}.")

    def _connect(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                try:
                    import httpx
                except ImportError:
                    raise MissingExtra("asking a language model needs: pip install 'anomalens[llm]'.") from None
                self._secret = self._find_key()
                headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
                if self._secret:
                    headers["Authorization"] = f"Bearer {self._secret}"
                self._client = httpx.Client(
                    headers=headers,
                    timeout=httpx.Timeout(self.timeout, pool=None),
                    limits=httpx.Limits(max_connections=self.concurrency),
                    verify=self.base_url.startswith("https:"),  # http needs no certificates, which take 50 ms to read
                    follow_redirects=False,
                    trust_env=not _is_loopback(self.base_url),  # a proxy has no business between us and ourselves
                )
                weakref.finalize(self, self._client.close)
            return self._client

    def _find_key(self) -> str:
        key = self.key
        if self.key_env:
            key = os.environ.get(self.key_env)
            if not key:
                raise WrongInput(f"the environment variable {self.key_env} holds no key; set it, or leave key_env out.")
        key = (key or "").strip()
        if not all("!" <= c <= "~" for c in key):
            raise WrongInput(
                "the key holds spaces or characters that no key has (it is not shown here); copy it again."
            )
        return key

    def _scrubbed(self, value: Any) -> Any:
        """Decoded JSON without the key, should a server echo it, and without halves of characters."""
        if isinstance(value, str):
            value = value.encode("utf-8", "replace").decode()
            return re.sub(re.escape(self._secret), "[key]", value, flags=re.IGNORECASE) if self._secret else value
        if isinstance(value, list):
            return [self._scrubbed(v) for v in value]
        if isinstance(value, dict):
            return {self._scrubbed(k): self._scrubbed(v) for k, v in value.items()}
        return value

    def _count(self, content: bytes, pictures: int) -> None:
        with self._lock:
            self.usage.requests += 1
            self.usage.pictures += pictures
            self.usage.bytes += len(content)

    def _path(self, messages: Sequence[Message], options: dict[str, Any]) -> Path | None:
        """Where the answer to this request lies; neither the address nor the key decides."""
        if self.cache is None:
            return None
        told = [
            [m.role, *(["picture", p.mime, p.sha256] if isinstance(p, Picture) else ["text", p] for p in m.parts)]
            for m in messages
        ]
        request = dumps({**options, "schema": SCHEMA, "messages": told}, sort_keys=True)
        digest = hashlib.sha256(request.encode()).hexdigest()
        return Path(self.cache) / digest[:2] / f"{digest}.json"


class _Failed(Exception):
    """No usable answer, and asking again would not help. The message is the sentence for the user."""


class _Rejected(_Failed):
    """400 or 422. said: the server's words, for finding out which field it does not know."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class _Retry(Exception):
    """Asking again may help, after `wait` seconds where the server said so. The message has no full stop."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@contextmanager
def _network_errors(base_url: str, timeout: float, scrubbed: Callable[[str], str]) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise _Retry(
            f"the server at {base_url} did not answer within {timeout:g} s; raise timeout if it is slow"
        ) from None
    except httpx.ConnectError as error:
        raise _Retry(
            f"no server answers at {base_url} ({_shown(scrubbed(str(error)))}); check that it is running"
        ) from None
    except httpx.TransportError as error:
        raise _Retry(f"the connection to {base_url} broke ({_shown(scrubbed(str(error)))})") from None
    except (httpx.InvalidURL, ValueError):
        raise _Failed(f"the server at {base_url} redirects to an address that is none; check base_url.") from None


def _bounded(response: httpx.Response, deadline: float, base_url: str) -> bytes:
    """The body, up to MAX_ANSWER bytes and until the deadline. Raw: a compressed reply could unfold without bound."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > MAX_ANSWER:
            raise _Failed(
                f"the server at {base_url} answered with more than {MAX_ANSWER // 2**20} MiB; that is no answer."
            )
        if time.monotonic() > deadline:
            raise _Retry(f"the server at {base_url} sends its answer too slowly; raise timeout")
    return bytes(data)


def _asked_wait(header: str | None) -> float | None:
    """Seconds a Retry-After header asks for: a number, or a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return seconds if math.isfinite(seconds) else None


def _without(options: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    sent = {k: v for k, v in options.items() if k not in refused}
    if "max_tokens" in refused and "max_tokens" in options:
        sent["max_completion_tokens"] = options["max_tokens"]  # what newer servers call it
    return sent


def _fields_to_drop(said: str, options: dict[str, Any]) -> frozenset[str]:
    """Which optional fields a rejection is about: those it names, else the two that few servers know."""
    if "max_completion_tokens" in said:
        return frozenset({"max_tokens"})
    named = {k for k in ("response_format", "logprobs", "seed") if k in said} & options.keys()
    dropped = named or {"response_format", "logprobs"} & options.keys()
    return frozenset(dropped | ({"top_logprobs"} if "logprobs" in dropped else set()))


# From decoded JSON to an Answer. Nothing about its shape is taken for granted.


def _understood(reply: Any) -> Answer:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        detail = _shown(_error_text(reply)) or "check base_url and the model's name"
        raise _Failed(f"the server's answer holds no message: {detail}.")
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    usage = reply.get("usage")
    counted = usage.items() if isinstance(usage, dict) else ()
    said = Answer(
        text=_text(message.get("content")),
        finish_reason=finish,
        usage={k: v for k, v in counted if isinstance(v, int) and not isinstance(v, bool) and v >= 0},
        tokens=_tokens(choice.get("logprobs")),
        model=reply["model"] if isinstance(reply.get("model"), str) else "",
    )
    refusal = message.get("refusal")
    if finish == "length":
        return replace(said, status="truncated", error="the answer was cut at max_tokens; raise max_tokens.")
    if finish == "content_filter" or (isinstance(refusal, str) and refusal):
        why = _shown(refusal) if isinstance(refusal, str) and refusal else "content filter"
        return replace(said, status="refused", error=f"the answer was withheld: {why}.")
    if not said.text.strip():
        return replace(said, status="refused", error="the model answered with no text.")
    return said


def _text(content: Any) -> str:
    """A string, or the texts of a list of parts; what a model thinks aloud before its answer is cut off."""
    if isinstance(content, list):
        texts = [p.get("text") if isinstance(p, dict) else p for p in content]
        content = "".join(t for t in texts if isinstance(t, str))
    if not isinstance(content, str):
        return ""
    _, mark, answer = content.partition("</think>")
    return answer.lstrip() if mark else content


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(entries, list):
        return ()
    found = []
    for entry in entries:
        pair = _pair(entry)
        if pair is None:
            return ()  # half a list would be worse than none
        top = entry.get("top_logprobs")
        top = [_pair(t) for t in top] if isinstance(top, list) else []
        found.append(Token(*pair, top=dict(p for p in top if p)))
    return tuple(found)


def _pair(entry: Any) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    text, logprob = entry.get("token"), entry.get("logprob")
    ok = isinstance(text, str) and isinstance(logprob, (int, float)) and not math.isnan(logprob)
    return (cast(str, text), float(cast(float, logprob))) if ok else None


def _error_text(reply: Any) -> str:
    """The message of an error object, in the shapes servers use."""
    for key in ("error", "message", "detail"):
        if isinstance(reply, dict) and key in reply:
            return _error_text(reply[key])
    return reply if isinstance(reply, str) else ""


def _shown(text: str, most: int = 200) -> str:
    """A server's words, fit for one line of a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split()).rstrip(".")
    return text if len(text) <= most else f"{text[:most]}..."


# The cache.


def _plain(answer: Answer) -> dict[str, Any]:
    plain = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "cached"}
    return {**plain, "usage": dict(answer.usage), "tokens": [[t.text, t.logprob, dict(t.top)] for t in answer.tokens]}


def _read_answer(path: Path) -> Answer | None:
    """The answer in a cache file; None where there is none, or where the file is damaged."""
    try:
        plain = loads(path.read_bytes())
        if plain.pop("schema") != SCHEMA or plain["status"] not in ("ok", "refused", "truncated"):
            return None
        if not all(isinstance(plain[k], str) for k in ("text", "error", "finish_reason", "model")):
            return None
        plain["tokens"] = tuple(Token(text, float(logprob), dict(top)) for text, logprob, top in plain["tokens"])
        plain["usage"] = {str(k): int(v) for k, v in plain["usage"].items()}
        return Answer(**plain, cached=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


# Requests and addresses.


def _as_json(message: Message) -> dict[str, Any]:
    if all(isinstance(p, str) for p in message.parts):
        return {"role": message.role, "content": message.text}  # servers without pictures know only this form
    return {"role": message.role, "content": [_part(p) for p in message.parts]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:{part.mime};base64,{b64encode(part.data).decode()}"}}


def _checked_url(url: str) -> str:
    """The address without a slash at its end, and without the path that we append."""
    example = "e.g. http://127.0.0.1:8080/v1"
    if not url:
        raise WrongInput(f"a model needs the address of its server (base_url=..., {example}); there is no default.")
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if not port_ok or parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise WrongInput(f"base_url is not an http or https address, {example}.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise WrongInput(
            "base_url holds a user name, a password or a query; give the key as key_env, and the bare address."
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _mime(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise WrongInput("these bytes are no PNG, JPEG or WebP file; give an array or the file's path instead.")


def _at_most(pixels: np.ndarray, longest: int) -> np.ndarray:
    import numpy as np
    from PIL import Image

    from ..images import to_8bit

    pixels = np.asarray(pixels)
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not grey_or_rgb or pixels.dtype not in (np.uint8, np.uint16) or not pixels.size:
        raise WrongInput(f"a picture is (H, W, 3) or (H, W), uint8 or uint16; got {pixels.shape} {pixels.dtype}.")
    pixels = to_8bit(pixels)
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
