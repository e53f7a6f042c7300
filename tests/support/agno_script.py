"""What the agents of ``agno_server`` say, apart from the server so that a test can import it without loading Agno."""

import json

TEXT = "Olá! 👋 Seu pedido\n\n1. café ☕\n2. pão de queijo 🧀\n\nFamília: 👨‍👩‍👧‍👦 — até já!"
TEXT_DELTAS = (
    "Olá",
    "! 👋",
    " Seu pedido",
    "\n\n1. café ☕\n",
    "2. pão de queijo 🧀\n",
    "\n",
    "Família: ",
    "👨‍👩‍👧‍👦",
    " — até já",
    "!",
)
TOOL_TEXT = "Vou consultar o estoque… 🔎\nTemos 7 unidades de SKU-42 📦."
TEAM_TEXT = "Um instante… O prazo de entrega é 3 dias úteis 🚚."
MEMBER_TEXT = "[membro] prazo é de 3 dias 🚚"
ERROR_TEXT = "Começando a responder… ⏳"
ERROR_MESSAGE = 'upstream 529: overloaded "now"\nretry later'


def get_stock(sku: str) -> str:
    """Stock of a SKU."""
    return json.dumps({"sku": sku, "units": 7, "note": "café"}, ensure_ascii=False)
