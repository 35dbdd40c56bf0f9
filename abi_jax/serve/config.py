"""What a server is: a model, where it listens, who may ask, what it remembers. See `configs/serve`."""

from dataclasses import dataclass, field

from abi_jax.errors import InputError
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.http.auth import JwtConfig
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.origin import is_loopback
from abi_jax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class TlsConfig:
    """Files in PEM: the certificate with those that signed it, and its key."""

    cert: str
    key: str


@dataclass(frozen=True)
class ServeConfig:
    """A server.

    model: a model directory; name: what it is called in answers and metrics, its last part by default. mesh: devices to
    spread it over. keys: a file of keys (`abi key`); jwt: signed tokens, besides. open: everybody may ask, wherever
    this listens; without keys it is else for this machine alone. personas: a file that keeps the personas that come and
    change while it runs. users: a folder of users' own adaptations, of which `engine.users` are on the device at once.
    encoder: a sentence encoder's directory, for vectors of texts. memory: a WDBX store, made if need be; memory_key
    opens an encrypted one; policy: who may do what in it, besides what roles allow. json_logs:
    lines of JSON, else of text. tracing: traces for OpenTelemetry; where they go, the variables OTEL_* say.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    dtype: str = "float32"
    engine: EngineConfig = field(default_factory=EngineConfig)
    mesh: MeshConfig | None = None
    limits: Limits = field(default_factory=Limits)
    keys: str = ""
    jwt: JwtConfig | None = None
    open: bool = False
    tls: TlsConfig | None = None
    personas: str = ""
    users: str = ""
    encoder: str = ""
    memory: str = ""
    memory_key: str = ""
    policy: str = ""
    json_logs: bool = True
    tracing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise InputError(f"port = {self.port}; expected a number from 0 to 65535")
        if self.dtype not in ("float32", "bfloat16"):
            shorter = " (weights and cache as int8: engine.quantization, engine.kv_cache_dtype)"
            expected = f"expected float32 or bfloat16{shorter if self.dtype == 'int8' else ''}"
            raise InputError(f"dtype = {self.dtype!r}; {expected}")
        if bool(self.users) != bool(self.engine.users):
            raise InputError(
                f"users = {self.users!r} with engine.users = {self.engine.users}; expected a folder, and how many of "
                "its adaptations are on the device at once, or neither"
            )
        if self.policy and not (self.memory and (self.keys or self.jwt)):
            raise InputError(f"policy = {self.policy!r}; expected memory and keys with it")
        if not (self.keys or self.jwt or self.open or is_loopback(self.host)):
            raise InputError(
                f"host = {self.host!r} can be reached from elsewhere, and there are no keys; expected keys (see "
                "`abi key`), or open = true"
            )
