"""Decides whether a webhook comes from who it says: by the API key, or by the token Evolution signs with a shared secret.

Evolution calls without any proof unless it is told a header or a ``jwt_key``. Instances that were set up that way
go on working, with one warning each; where proof is required, by the settings or by the instance, a call without it is refused.
"""

import logging

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm
from starlette.datastructures import Headers

from omni.clock import NS_PER_S, Clock
from omni.errors import WebhookUnauthorized
from omni.model import InstanceConfig
from omni.web.credentials import bearer_token, carries_key

log = logging.getLogger(__name__)

TOKEN_LENIENCY_S = 40 * 60
"""Seconds a token is accepted past its end: Evolution signs once per event and retries with the same token for up to half an hour."""


class _Claims(msgspec.Struct):
    app: str
    action: str
    exp: float


class _OperatorSecret(HMACAlgorithm):
    """HS256 with a secret of the length the operator gave to Evolution, which asks for none."""

    def check_key_length(self, key: bytes) -> None:
        """No complaint: the same secret has to be used on both sides, and Evolution has it already."""


_TOKENS = jwt.PyJWS(algorithms=["HS256"])
_TOKENS.unregister_algorithm("HS256")
_TOKENS.register_algorithm("HS256", _OperatorSecret(HMACAlgorithm.SHA256))


class WebhookGuard:
    """Checks one webhook's headers. Use on one event loop only."""

    def __init__(self, api_key: str, *, is_required_everywhere: bool, clock: Clock) -> None:
        self._api_key = api_key
        self._is_required_everywhere = is_required_everywhere
        self._clock = clock
        self._warned: set[str] = set()

    def check(self, instance: InstanceConfig, headers: Headers) -> None:
        """Return when the call may be taken. Raises WebhookUnauthorized when proof is required and missing or wrong."""
        if carries_key(headers, self._api_key) or self._carries_token(instance, headers):
            return
        if self._is_required_everywhere or instance.requires_webhook_auth:
            raise WebhookUnauthorized("This instance takes webhooks only with its key or token.")
        if instance.name not in self._warned:
            self._warned.add(instance.name)
            log.warning("webhook_unauthenticated", extra={"instance": instance.name})

    def _carries_token(self, instance: InstanceConfig, headers: Headers) -> bool:
        token = bearer_token(headers)
        if token is None or not instance.webhook_secret:
            return False
        try:
            claims = msgspec.json.decode(
                _TOKENS.decode(token, instance.webhook_secret, algorithms=["HS256"]), type=_Claims
            )
        except (jwt.PyJWTError, msgspec.MsgspecError, UnicodeError):
            return False
        is_in_time = self._clock.wall_ns() / NS_PER_S <= claims.exp + TOKEN_LENIENCY_S
        return claims.app == "evolution" and claims.action == "webhook" and is_in_time
