"""The description of the interface."""

import json
import re

import pytest

from abi_jax.serve.http import site
from abi_jax.serve.http.routes import RULES
from tests.serve.http.serving import Running

pytestmark = pytest.mark.smoke


def test_every_route_is_described(plain: Running) -> None:
    document = plain.http.get("/openapi.json").json()
    described = {(method, path) for path, each in document["paths"].items() for method in each}
    wanted = {(rule.method.lower(), re.sub(r":\w+}", "}", rule.path)) for rule in RULES if rule not in site.RULES}
    assert described == wanted - {("get", "/openapi.json")}
    schemas = document["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred <= set(schemas) and "#/$defs" not in json.dumps(document)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    assert chat["security"] and "security" not in document["paths"]["/health"]["get"]
    assert {"model", "messages"} <= set(schemas["ChatRequest"]["required"])
    assert schemas["ChatRequest"]["additionalProperties"] is False
    names = [each[method]["operationId"] for each in document["paths"].values() for method in each]
    assert len(set(names)) == len(names)
