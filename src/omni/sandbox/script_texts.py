"""The scripted answers themselves, in English and Portuguese, and how one is chosen. Pure data.

Each script shows one thing a gateway has to get right: paragraphs that become messages while the agent still writes, code that must
stay whole, lists that keep their introduction, emoji that must not be torn, tools, members, silence, and every way to fail.
"""

from collections.abc import Mapping
from typing import Any

from omni.sandbox.scripts import (
    AskMember,
    AskPerson,
    CallTool,
    DropConnection,
    FailRun,
    Garbage,
    Language,
    Say,
    Script,
    Stall,
    Step,
    Wait,
    commanded,
    language_of,
)

STALL_S = 600.0
"""Real seconds a stalled stream stays silent: longer than any idle limit somebody would set."""

PROVIDER_ERROR = "provider answered 529 (overloaded_error), request req_sandbox_0042"
"""What a failing model provider says. It is for operators: seeing it on the phone is a fault of the gateway."""

_PROXY_PAGE = b"<html><head><style>body{color:#333}</style></head><body><h1>502 Bad Gateway</h1></body></html>"

_GREETING = {
    "en": (
        "Hello! I am the scripted agent of this sandbox. No model is running here: what I say was written in advance, and I say it"
        " token by token, the way a real agent does.\n\n"
        "You can try:\n"
        "• /prose, /code, /list, /emoji or /long to see how answers become messages\n"
        "• /tool and /team to see what is kept from the user\n"
        "• /slow and /stall to test patience\n"
        "• /fail, /error-first, /cut, /empty, /garbage and /paused to see how things end badly\n\n"
        "Watch the trace beside this chat while I write. It shows every chunk, the first token, and when each message was accepted"
        " and delivered. 👋"
    ),
    "pt": (
        "Olá! Eu sou o agente de roteiro deste sandbox. Nenhum modelo roda aqui: o que eu digo foi escrito antes, e eu digo token"
        " por token, como faz um agente de verdade.\n\n"
        "Você pode testar:\n"
        "• /prose, /code, /list, /emoji ou /long para ver como respostas viram mensagens\n"
        "• /tool e /team para ver o que não chega ao usuário\n"
        "• /slow e /stall para testar a paciência\n"
        "• /fail, /error-first, /cut, /empty, /garbage e /paused para ver finais ruins\n\n"
        "Acompanhe o rastro ao lado enquanto eu escrevo. Ele mostra cada pedaço, o primeiro token e quando cada mensagem foi aceita"
        " e entregue. 👋"
    ),
}

_PROSE = {
    "en": (
        "Streaming feels fast for a simple reason: people start reading with the first words, not with the last one. A good answer"
        " that begins after half a second beats a perfect one that arrives in one piece after ten.\n\n"
        "On WhatsApp nobody sees single tokens, of course. What arrives are whole messages, so the art lies in where an answer is"
        " cut. A paragraph is a natural message; half a sentence is not.\n\n"
        "While you read this, I am still writing. That is the point: the message above was delivered before this one existed, and"
        " the trace can prove it.\n\n"
        "Two numbers matter most. One is how long you waited for the first words. The other is how far the delivery lags behind the"
        " writing, because a gateway that queues everything up has not streamed at all."
    ),
    "pt": (
        "O streaming parece rápido por um motivo simples: a gente começa a ler nas primeiras palavras, não na última. Uma boa"
        " resposta que começa em meio segundo ganha de uma perfeita que chega inteira depois de dez.\n\n"
        "No WhatsApp ninguém vê tokens soltos, claro. O que chega são mensagens inteiras, e a arte está em onde cortar a resposta."
        " Um parágrafo é uma mensagem natural; meia frase não é.\n\n"
        "Enquanto você lê isto, eu ainda estou escrevendo. A mensagem acima foi entregue antes de esta existir, e o rastro prova.\n\n"
        "Dois números importam mais: quanto tempo você esperou pelas primeiras palavras, e quanto a entrega fica atrás da escrita."
    ),
}

_CODE_BLOCK = (
    "```\n"
    "def first_token_ms(request_ns, chunks):\n"
    "    for chunk in chunks:\n"
    "        if chunk.text.strip():\n"
    "            return (chunk.mono_ns - request_ns) // 1_000_000\n"
    "\n"
    "    return None  # unknown is not zero\n"
    "```"
)
_CODE = {
    "en": (
        "Here is a small function that finds the first visible token:\n\n"
        + _CODE_BLOCK
        + "\n\nThe blank line inside the block is deliberate: a careless splitter would tear the code in two there.\n\n"
        "Call it with `first_token_ms(start, chunks)` once the stream has ended."
    ),
    "pt": (
        "Aqui está uma função pequena que acha o primeiro token visível:\n\n"
        + _CODE_BLOCK
        + "\n\nA linha em branco dentro do bloco é de propósito: um divisor descuidado partiria o código ali.\n\n"
        "Chame `first_token_ms(start, chunks)` quando o stream terminar."
    ),
}

_LIST = {
    "en": (
        "Three things to check before you go live:\n\n"
        "1. *Keys*: the gateway's key, the agent's key and Evolution's key are three different ones.\n"
        "2. *Time*: run Evolution in UTC, or its event times will be hours off.\n"
        "3. *Receipts*: turn message saving on; without it some receipts never come.\n\n"
        "And three to watch afterwards:\n\n"
        "- time to the first words, by agent\n"
        "- messages accepted but never delivered\n"
        "- answers that ended early\n\n"
        "More in the handbook: https://example.com/handbook/going-live?lang=en#checklist"
    ),
    "pt": (
        "Três coisas para conferir antes de ir ao ar:\n\n"
        "1. *Chaves*: a do gateway, a do agente e a da Evolution são três chaves diferentes.\n"
        "2. *Relógio*: rode a Evolution em UTC, ou os horários dos eventos ficam errados.\n"
        "3. *Recibos*: ligue o salvamento de mensagens; sem ele alguns recibos nunca chegam.\n\n"
        "E três para acompanhar depois:\n\n"
        "- tempo até as primeiras palavras, por agente\n"
        "- mensagens aceitas e nunca entregues\n"
        "- respostas que terminaram cedo\n\n"
        "Mais no manual: https://example.com/manual/ir-ao-ar?lang=pt#lista"
    ),
}

_EMOJI = {
    "en": (
        "Emoji are small traps 🪤. A family 👨‍👩‍👧‍👦 is seven code points, a flag 🇧🇷 two, a waving hand 👋🏽 two.\n\n"
        "Tear one apart and the reader sees strangers: 👩🏾‍🚀 is made of four code points, and so is 🏳️‍🌈.\n\n"
        "Accents are another: “naïve café” may be written with combining marks, nai\u0308ve cafe\u0301, and must stay whole. ✅"
    ),
    "pt": (
        "Emoji são pequenas armadilhas 🪤. Uma família 👨‍👩‍👧‍👦 são sete pontos de código, uma bandeira 🇧🇷 dois, um aceno 👋🏽 dois.\n\n"
        "Se um deles se parte, aparecem estranhos: 👩🏾‍🚀 é feita de quatro pontos de código, e 🏳️‍🌈 também.\n\n"
        "Acentos também: “coração” pode vir com marcas combinantes, corac\u0327a\u0303o, e tem de ficar inteiro. ✅"
    ),
}

_LONG_SENTENCES = {
    "en": (
        "Sentence {n} of this single paragraph is here to make it longer than any one message may be, so that a cut is needed at a"
        " place a reader would accept. "
    ),
    "pt": (
        "A frase {n} deste único parágrafo existe para que ele fique maior do que uma mensagem pode ser, e seja preciso cortar num"
        " lugar que o leitor aceite. "
    ),
}
_LONG_FRAME = {
    "en": (
        "This will be long. First comes one paragraph of several thousand characters:\n\n",
        "\n\nThat was all of it.",
    ),
    "pt": ("Isto vai ser longo. Primeiro vem um parágrafo de vários milhares de caracteres:\n\n", "\n\nIsso foi tudo."),
}

_TOOL: Mapping[Language, tuple[str, str]] = {
    "en": (
        "Let me look that up in the stock system…\n\n",
        "Found it: 7 units of SKU-42 are left in the São Paulo warehouse. 📦\n\nShall I reserve one for you?",
    ),
    "pt": (
        "Vou consultar o sistema de estoque…\n\n",
        "Achei: restam 7 unidades do SKU-42 no depósito de São Paulo. 📦\n\nQuer que eu reserve uma para você?",
    ),
}
_TEAM: Mapping[Language, tuple[str, str, str]] = {
    "en": (
        "One moment, I am asking our delivery specialist…\n\n",
        "[member] internal note: carrier says 3 working days, margin 40%, do not quote the margin",
        "Delivery takes three working days. 🚚\n\nYou will get a tracking code as soon as the parcel leaves.",
    ),
    "pt": (
        "Um instante, vou perguntar à nossa especialista em entregas…\n\n",
        "[membro] nota interna: a transportadora diz 3 dias úteis, margem de 40%, não citar a margem",
        "O prazo de entrega é de três dias úteis. 🚚\n\nVocê recebe o código de rastreio assim que o pacote sair.",
    ),
}
_SLOW = {
    "en": "I take my time.\n\nEvery word comes by itself, and you can see the typing sign all along.\n\nThere. Done.",
    "pt": "Eu não tenho pressa.\n\nCada palavra vem sozinha, e o sinal de digitação fica visível o tempo todo.\n\nPronto.",
}
_BEGUN = {
    "en": "This first part arrives safely.\n\nThis second part begins well and then ",
    "pt": "Esta primeira parte chega inteira.\n\nEsta segunda começa bem e então ",
}
_CONFIRM = {
    "en": "I can cancel order 77 for you. That needs somebody's consent.",
    "pt": "Posso cancelar o pedido 77. Para isso alguém precisa autorizar.",
}


def scripts(language: Language) -> Mapping[str, Script]:
    """All scripts in one language, in the order they are offered."""
    return _SCRIPTS[language]


def choose_script(message: str, *, runner_id: str) -> Script:
    """The script for a message: its command, else the script named like the agent or team, else the greeting."""
    known = scripts(language_of(message))
    return known.get(commanded(message) or "") or known.get(runner_id) or known["greeting"]


def _build(language: Language) -> dict[str, Script]:
    def script(name: str, title: str, *steps: Step, **rest: Any) -> tuple[str, Script]:
        return name, Script(name=name, title=title, steps=steps, **rest)

    opening, closing = _LONG_FRAME[language]
    paragraph = "".join(_LONG_SENTENCES[language].format(n=n) for n in range(1, 37)).rstrip()
    begun = Say(_BEGUN[language])
    before, after = _TOOL[language]
    asking, note, told = _TEAM[language]
    return dict(
        (
            script("greeting", "Greeting", Say(_GREETING[language])),
            script("prose", "Paragraphs", Say(_PROSE[language])),
            script("code", "Code block", Say(_CODE[language])),
            script("list", "Lists", Say(_LIST[language])),
            script("emoji", "Emoji", Say(_EMOJI[language], 0.05, 3)),
            script("long", "Very long", Say(opening + paragraph + closing, 0.025, 28)),
            script(
                "tool",
                "Tool call",
                Say(before),
                CallTool(name="get_stock", args={"sku": "SKU-42"}, result='{"sku": "SKU-42", "units": 7}'),
                Say(after),
            ),
            script(
                "team",
                "Team member",
                Say(asking),
                AskMember(member_id="delivery-specialist", task="How long does delivery take?", text=note),
                Say(told),
            ),
            script("slow", "Slow", Say(_SLOW[language], 0.32, 12), first_token_s=2.5),
            script("stall", "Stall", begun, Stall(STALL_S)),
            script("fail", "Error later", begun, FailRun(PROVIDER_ERROR)),
            script("error-first", "Error first", Wait(0.2), FailRun(PROVIDER_ERROR)),
            script("cut", "Cut off", begun, DropConnection()),
            script("empty", "Empty", Wait(0.4)),
            script("garbage", "Garbage", Garbage(_PROXY_PAGE)),
            script(
                "paused",
                "Needs consent",
                Say(_CONFIRM[language]),
                AskPerson(tool_name="cancel_order", args={"order_id": "77"}),
            ),
        )
    )


_SCRIPTS: Mapping[Language, Mapping[str, Script]] = {"en": _build("en"), "pt": _build("pt")}
