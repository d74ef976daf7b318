"""Versions and recipes as bytes: numbered formats, signatures, and files given by hand.

An artifact is one MessagePack map {"format": 1, "kind", "meta", "payload"} in the blob store. The
payload is skops for scikit-learn, LightGBM's own text, JSON for the built-in linear models, and
cloudpickle where nothing safer fits. A record of its digest is signed with HMAC-SHA256, and
nothing in an artifact is parsed, let alone imported, before its signature has been checked.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import pickle
import re
import secrets
import site
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from loopline import builtin
from loopline.contracts import BlobStore
from loopline.errors import InvalidInput, LooplineError, Tampered, Unavailable
from loopline.model import Adopted, adopt, restore
from loopline.natives import BUILT_IN, home_of, is_a
from loopline.recipes import imported
from loopline.records import Artifact

CONTAINER = 1
PICKLES = (".pkl", ".pickle", ".joblib")

# Classes (a capital after the last dot) and special functions of numbers: any other function could
# be made to run with anything.
_TRUSTED = re.compile(
    r"""sklearn\.(?!externals|utils\._testing)(\w+\.)*_?[A-Z]\w*
    | lightgbm\.(sklearn\.LGBM\w+ | basic\.Booster)
    | xgboost\.(sklearn\.XGB\w+ | core\.Booster)
    | loopline\.(builtin\.[A-Z]\w* | features\.as_text)
    | scipy\.special\._(special_)?ufuncs\.[a-z]\w*
    | scipy\.(interpolate\._bsplines\.BSpline | stats\._distn_infrastructure\.\w+_frozen)
    | numpy\.dtype
    | collections\.(OrderedDict|defaultdict|Counter)""",
    re.VERBOSE,
)
_seen: set[str] = set()
"""Trusted types of earlier files: one that holds no others is audited once, while it is loaded."""
_by_value = threading.Lock()
_state = {"ours": False}


class Keys:
    """Signing keys in a file that only its owner can read: the first signs, all of them verify.

    The file is a JSON list of {"id", "hex"}, made with one key when it is first needed. Several
    processes may start at once, and agree on the same key.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._keys: dict[str, bytes] = {}

    def sign(self, format: str, digest: str) -> str:
        """The signature of an artifact: the key's id, a dot, and a MAC in hexadecimal digits."""
        if not self._keys:
            self._read()
        name = next(iter(self._keys))
        return f"{name}.{_mac(self._keys[name], format, digest)}"

    def verify(self, format: str, digest: str, signature: str) -> None:
        """Check a signature; keys that other processes added are found.

        Raises:
            Tampered: it was not made by one of these keys for this format and digest.
        """
        name, _, mac = signature.partition(".")
        if name not in self._keys:
            self._read()
        key, given = self._keys.get(name), mac.encode("utf-8", "replace")
        if key is None or not hmac.compare_digest(given, _mac(key, format, digest).encode()):
            raise Tampered("The artifact's signature is not one of this installation's.")

    def _read(self) -> None:
        if not self.path.exists():
            self._create()
        try:
            listed = json.loads(self.path.read_text("utf-8"))
            keys = {str(each["id"]): bytes.fromhex(each["hex"]) for each in listed}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"the signing keys in {self.path} can't be read: {error}") from error
        if not keys or not all(len(key) >= 16 for key in keys.values()):
            raise Unavailable(f"the signing keys in {self.path} are not complete")
        self._keys = keys

    def _create(self) -> None:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix=self.path.name, dir=folder) as file:
            json.dump([{"id": secrets.token_hex(4), "hex": secrets.token_hex(32)}], file)
            file.flush()
            os.fsync(file.fileno())
            # A link is made whole or not at all, so every process sees the first one's key.
            with suppress(FileExistsError):
                os.link(file.name, self.path)


def _mac(key: bytes, format: str, digest: str) -> str:
    return hmac.new(key, f"{format}\n{digest}".encode(), hashlib.sha256).hexdigest()


def save(adopted: Adopted, blobs: BlobStore, keys: Keys) -> Artifact:
    """Store a model, fitted or not, in the safest format that can hold it, and sign it.

    The same model gives the same bytes, so storing it again stores nothing.

    Raises:
        InvalidInput: no format can hold it, because it holds a thread, a socket or the like.
    """
    format, state, payload = _encoded(adopted)
    held = {"format": CONTAINER, "kind": adopted.kind, "meta": state, "payload": payload}
    blob = msgspec.msgpack.encode(held)
    digest = blobs.put(blob)
    signature = keys.sign(format, digest)
    return Artifact(digest=digest, format=format, size=len(blob), signature=signature)


def load(artifact: Artifact, blobs: BlobStore, keys: Keys) -> Adopted:
    """Load a model; its signature is checked before anything in it is parsed.

    Raises:
        Tampered: the signature or the bytes are not what was stored.
        InvalidInput: a format of a later Loopline, or types that are not trusted.
    """
    keys.verify(artifact.format, artifact.digest, artifact.signature)
    blob = blobs.get(artifact.digest)
    if hashlib.sha256(blob).hexdigest() != artifact.digest:
        raise Tampered
    container = msgspec.msgpack.decode(blob)
    reader = _READERS.get(artifact.format)
    if reader is None or container["format"] != CONTAINER:
        raise InvalidInput(f"{artifact.format} is not a format that this version knows")
    return restore(reader(container["payload"]), container["kind"], container["meta"])


def _encoded(adopted: Adopted) -> tuple[str, dict[str, Any], bytes]:
    """The format that fits, the state beside the payload, and the payload."""
    native, state = adopted.native, adopted.state()
    if adopted.kind in BUILT_IN:
        return "linear/1", state, json.dumps(native.state()).encode()
    booster, maker = _bare_booster(adopted)
    if booster is not None:
        return "lightgbm/1", {**state, "maker": maker}, booster.model_to_string().encode()
    payload = _skops(native) if adopted.kind in ("sklearn", "lightgbm", "xgboost") else None
    if payload is not None:
        return "skops/1", state, payload
    return "cloudpickle/1", state, _pickled(native)


def _bare_booster(adopted: Adopted) -> tuple[Any, dict[str, Any] | None]:
    """A booster that answers alone, and how its estimator is made again, (None, None) if not."""
    native = adopted.native
    if is_a(native, "Booster") and adopted.kind == "lightgbm":
        return native, adopted.maker
    lone = home_of(native) == "lightgbm.sklearn" and adopted.fitted
    parameters = adopted.parameters() if lone and not callable(native.objective) else {}
    if not parameters or parameters.keys() != native.get_params().keys():
        return None, None
    path = f"lightgbm.{type(native).__name__}"
    return native.booster_, {"path": path, "parameters": parameters}


def _skops(native: Any) -> bytes | None:
    """An estimator in skops' format, None where that can't hold it or holds what is not trusted."""
    skops_io = _skops_io()
    from skops.io.exceptions import UnsupportedTypeException

    try:
        payload = _canonical(skops_io.dumps(native))
        _from_skops(payload)
    except (UnsupportedTypeException, InvalidInput, TypeError, ValueError, AttributeError):
        return None
    return payload


def _canonical(payload: bytes) -> bytes:
    """The same skops file without the object addresses and times of the process that wrote it."""
    out = io.BytesIO()
    ids: dict[Any, int] = {}
    names: dict[str, str] = {}

    def renumbered(node: dict[str, Any]) -> dict[str, Any]:
        if "__id__" in node:
            # Whether two equal plain values are one object is up to the process, so they never are.
            key = object() if node.get("__loader__") == "JsonNode" else node["__id__"]
            node["__id__"] = ids.setdefault(key, len(ids) + 1)
        if isinstance(node.get("file"), str):
            suffix = node["file"].rpartition(".")[2]
            node["file"] = names.setdefault(node["file"], f"{len(names) + 1}.{suffix}")
        return node

    with zipfile.ZipFile(io.BytesIO(payload)) as old, zipfile.ZipFile(out, "w") as new:
        schema = json.loads(old.read("schema.json"), object_hook=renumbered)
        for before, after in names.items():
            new.writestr(zipfile.ZipInfo(after), old.read(before))
        new.writestr(zipfile.ZipInfo("schema.json"), json.dumps(schema))
    return out.getvalue()


def _from_skops(payload: bytes, trust: bool = False) -> Any:
    skops_io = _skops_io()
    from skops.io.exceptions import UntrustedTypesFoundException

    with suppress(UntrustedTypesFoundException):
        return skops_io.loads(payload, trusted=[*_seen])
    types = skops_io.get_untrusted_types(data=payload)
    refused = [name for name in types if not _TRUSTED.fullmatch(name)]
    if refused and not trust:
        raise InvalidInput(f"the file holds types that are not trusted: {', '.join(refused)}")
    _seen.update(set(types) - set(refused))
    return skops_io.loads(payload, trusted=types)


def own_process() -> None:
    """Say that this process is all ours, so that skops may be imported the quick way.

    skops lists every scikit-learn estimator when it is imported, and imports all of scikit-learn
    for that (most of a second, and 20 MB), and looks for the home of each special function in
    every module there is, to have a list of trusted names. We trust by name ourselves; but others
    who use skops in the same process would miss the list.
    """
    _state["ours"] = True


def _skops_io() -> Any:
    import scipy.special
    import sklearn.utils

    listing, functions = sklearn.utils.all_estimators, scipy.special
    try:
        if _state["ours"]:
            sklearn.utils.all_estimators, scipy.special = list, ModuleType("scipy.special")
        from skops import io

        return io
    finally:
        sklearn.utils.all_estimators, scipy.special = listing, functions


def _pickled(native: Any) -> bytes:
    """A pickle that brings along the classes of modules that are not installed packages."""
    import cloudpickle

    installed = _installed()
    modules = [module for module in list(sys.modules.values()) if _is_users(module, installed)]
    with _by_value:
        try:
            for module in modules:
                cloudpickle.register_pickle_by_value(module)
            payload: bytes = cloudpickle.dumps(native)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            kind = type(native).__name__
            raise InvalidInput(f"this {kind} can't be stored: {error}") from error
        finally:
            for module in modules:
                with suppress(ValueError):
                    cloudpickle.unregister_pickle_by_value(module)
        return _steady(payload, cloudpickle)


def _steady(payload: bytes, cloudpickle: Any) -> bytes:
    """The same pickle with class identifiers from its content, not from chance.

    cloudpickle marks a class that it brings along with random digits, by which a process that
    loads it twice gets one class. Ours follow the content, so equal models have equal bytes.
    """
    marks = set(cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.values())
    found = sorted((m.encode() for m in marks if m.encode() in payload), key=payload.index)
    blank = payload
    for mark in found:
        blank = blank.replace(mark, b"0" * len(mark))
    for number, mark in enumerate(found):
        name = hashlib.sha256(blank + number.to_bytes(4)).hexdigest()[: len(mark)]
        payload = payload.replace(mark, name.encode())
    return payload


def _is_users(module: Any, installed: tuple[str, ...]) -> bool:
    """Whether a module is a person's own file and not of an installed package."""
    name, path = getattr(module, "__name__", None), getattr(module, "__file__", None)
    if not isinstance(name, str) or not isinstance(path, str):
        return False
    if name.partition(".")[0] == "loopline" or name not in sys.modules:
        return False
    return not path.startswith(installed) and not os.path.realpath(path).startswith(installed)


def _installed() -> tuple[str, ...]:
    paths = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    found = {form(path) + os.sep for path in paths for form in (os.path.abspath, os.path.realpath)}
    return tuple(sorted(found))


def _from_pickle(payload: bytes) -> Any:
    try:
        return pickle.loads(payload)
    except Exception as error:  # A pickle runs the code of whatever it holds.
        raise InvalidInput(f"the model can't be loaded: {type(error).__name__}: {error}") from error


_READERS: dict[str, Callable[[bytes], Any]] = {
    "linear/1": lambda payload: builtin.restore(json.loads(payload)),
    "lightgbm/1": lambda payload: imported("lightgbm.Booster")(model_str=payload.decode()),
    "skops/1": _from_skops,
    "cloudpickle/1": _from_pickle,
}
_READS = {".json": "linear/1", ".txt": "lightgbm/1", ".skops": "skops/1"}


def load_file(path: Path | str, trust: bool = False) -> Adopted:
    """Load a model from a file that somebody made without us.

    It is `.skops` (audited), `.txt` (LightGBM's own text), `.json` (a built-in linear model), or a
    pickle. Pickles, and skops files with types that are not known to be harmless, need `trust`.

    Raises:
        InvalidInput: it can't be read as what its name says, or it would need `trust`.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (*_READS, *PICKLES):
        raise InvalidInput(f"{path} is none of {', '.join([*_READS, *PICKLES])}")
    if kind in PICKLES and not trust:
        raise InvalidInput(
            f"{path} is a pickle, which can run any code when it is loaded; "
            "if you know where it comes from, say --trust"
        )
    try:
        if kind in PICKLES:
            # scikit-learn brings joblib along, which also reads plain pickles.
            return adopt(import_module("joblib").load(path))
        payload = path.read_bytes()
        if kind == ".skops":
            return adopt(_from_skops(payload, trust))
        return adopt(_READERS[_READS[kind]](payload))
    except LooplineError as error:
        hint = " (say --trust to load it all the same)" if "not trusted" in error.detail else ""
        raise type(error)(f"{path}: {error.detail}{hint}") from error
    except Exception as error:  # A damaged file makes its reader raise anything.
        told = f"{path} can't be read: {type(error).__name__}: {error}"
        raise InvalidInput(told) from error
