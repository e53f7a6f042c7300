"""The phone page in a real Chromium, before a small gateway that streams, sends and serves the document it shows."""

import re
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.unit.sandbox.little_gateway import LittleGateway

from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.script_texts import scripts
from omni.sandbox.server import Sandbox, sandbox_instance

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1440, "height": 900}
NARROW = {"width": 390, "height": 844}
API_KEY = "a key for the gateway that is long enough"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


@pytest.fixture
async def phone():
    """The sandbox at ten times lifelike speed under a path of a small gateway; (sandbox, gateway, URL of the page)."""
    gateway = LittleGateway(API_KEY)
    sandbox = Sandbox(api_key=API_KEY, speed=10)
    app = Starlette(routes=[Mount("/sandbox", sandbox.asgi), Mount("/", gateway.asgi)])
    async with serve_on_loopback(app) as base:
        sandbox.post_webhooks_to(f"{base}/webhook/evolution/sandbox")
        gateway.settings = sandbox_instance(f"{base}/sandbox")
        async with sandbox:
            yield sandbox, gateway, f"{base}/sandbox/phone/"
            await gateway.stop()


@pytest.fixture
async def open_page(phone):
    """Opens the page in a size and colour scheme; at the end nothing may have gone wrong in it or been fetched elsewhere."""
    _, _, url = phone
    complaints, foreign = [], []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

        async def open_one(size=WIDE, scheme="light"):
            context = await browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
            page = await context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.on("request", lambda request: foreign.append(request.url))
            await page.goto(url)
            await expect(page.locator("#presence")).to_have_text("online")
            return page

        yield open_one
        await browser.close()
    # Chromium itself notes answers that are no 2xx: a trace not stored yet, a key that is missing.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
    assert [address for address in foreign if not address.startswith((url.split("/sandbox")[0], "data:"))] == []


async def say(page, text):
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def test_an_answer_arrives_bubble_by_bubble_and_its_trace_is_shown(phone, open_page, tmp_path):
    sandbox, gateway, _ = phone
    page = await open_page()

    await say(page, "/prose")
    await expect(page.locator(".bubble.user .body")).to_have_text("/prose")
    await expect(page.locator("#ending")).to_have_text("running")
    await expect(page.locator("#ending")).to_have_text("completed", timeout=15_000)

    paragraphs = scripts("en")["prose"].text.split("\n\n")
    await expect(page.locator(".bubble.agent .body")).to_have_text(paragraphs)
    await expect(page.locator(".bubble .tick[data-state=read]")).to_have_count(5, timeout=15_000)
    await expect(page.locator("#messages tbody tr td:last-child")).to_have_text(["read"] * 4, timeout=15_000)
    await expect(page.locator("#headline")).to_contain_text("read after", timeout=15_000)
    headline = await page.locator("#headline").text_content()
    document = next(iter(gateway.documents.values())).document()
    assert re.fullmatch(
        rf"streamed in [\d.]+ m?s: 743 characters in {len(document['streaming_chunks'])} chunks, "
        r"first token after \d+ ms, 4 messages delivered, read after [\d.]+ m?s",
        headline,
    )
    assert await page.locator("#picture .chunks line").count() == len(document["streaming_chunks"])
    assert await page.locator("#picture .message").count() == 4
    assert await page.locator("#picture .mark").count() == 3
    assert await page.locator("#stages tbody tr").count() == 6
    assert [run.ending for run in sandbox.hive.runs] == ["completed"]
    await page.screenshot(path=tmp_path / "wide-light.png")


async def test_the_first_bubble_is_there_while_the_agent_still_writes(phone, open_page):
    sandbox, _, _ = phone
    sandbox.pace.speed = 2
    page = await open_page()

    await say(page, "/prose")
    await expect(page.locator(".bubble.agent")).to_have_count(1, timeout=10_000)

    assert sandbox.hive.runs[0].ending is None
    await expect(page.locator("#headline")).to_contain_text("so far")
    sandbox.pace.speed = 0


async def test_the_typing_sign_shows_and_goes(phone, open_page):
    sandbox, _, _ = phone
    sandbox.pace.speed = 2
    page = await open_page()

    await say(page, "/slow")
    await expect(page.locator("#typing")).to_be_visible()
    await expect(page.locator("#presence")).to_have_text("writing…")
    sandbox.pace.speed = 20
    await expect(page.locator("#ending")).to_have_text("completed", timeout=15_000)
    await expect(page.locator("#typing")).to_be_hidden(timeout=5_000)


async def test_a_broken_answer_says_so_and_hides_the_providers_words(open_page):
    page = await open_page()

    await page.get_by_role("button", name="/fail").click()

    await expect(page.locator("#ending")).to_have_text("agent error", timeout=15_000)
    await expect(page.locator("#trouble")).to_contain_text("streaming_error")
    assert "overloaded" not in await page.locator("#chat").inner_text()


async def test_the_chips_write_in_the_chosen_language(open_page):
    page = await open_page()

    await page.get_by_role("radio", name="PT").check()
    await page.get_by_role("button", name="/list").click()

    await expect(page.locator(".bubble.agent").first).to_have_text(re.compile("^Três coisas"), timeout=15_000)


async def test_whatsapp_marks_become_markup_and_html_stays_text(phone, open_page):
    sandbox, _, _ = phone
    page = await open_page()
    text = "*bold* _it_ ~no~ `x` https://example.com/a?b=1, <b>plain</b> 2*3*4\n```\ncode\n\nmore\n```"

    instance = sandbox.evolution.instances["sandbox"]
    sandbox.evolution.accept_text(instance, {"number": "5511999990001", "text": text}, received_ns=0)

    body = page.locator(".bubble.agent .body")
    await expect(body.locator("strong")).to_have_text("bold")
    await expect(body.locator("em")).to_have_text("it")
    await expect(body.locator("s")).to_have_text("no")
    await expect(body.locator("code")).to_have_text("x")
    await expect(body.locator("a")).to_have_attribute("href", "https://example.com/a?b=1")
    assert await body.locator("pre").text_content() == "code\n\nmore"
    assert "<b>plain</b> 2*3*4" in await body.text_content()


async def test_an_earlier_turn_can_be_opened_again(open_page):
    page = await open_page()
    await say(page, "/tool")
    await expect(page.locator("#ending")).to_have_text("completed", timeout=15_000)
    await expect(page.locator("#facts")).to_contain_text("1 tool call")
    await say(page, "/emoji")
    await expect(page.locator(".open-trace")).to_have_count(2)
    await expect(page.locator("#facts")).not_to_contain_text("1 tool call", timeout=15_000)

    await page.locator(".open-trace").first.click()

    await expect(page.locator("#facts")).to_contain_text("1 tool call", timeout=15_000)
    await expect(page.locator("#which")).to_have_text("chosen")
    await expect(page.locator(".open-trace").first).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "is_beside"), [(WIDE, True), (NARROW, False)], ids=["wide", "narrow"])
async def test_the_page_fits_wide_and_narrow_screens_in_both_schemes(open_page, scheme, size, is_beside, tmp_path):
    page = await open_page(size, scheme)
    await say(page, "/list")
    await expect(page.locator("#ending")).to_have_text("completed", timeout=15_000)

    phone_box = await page.locator(".phone").bounding_box()
    trace_box = await page.locator(".trace").bounding_box()
    assert (trace_box["x"] >= phone_box["x"] + phone_box["width"]) is is_beside
    assert (trace_box["y"] >= phone_box["y"] + phone_box["height"]) is not is_beside
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, ground = await page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    is_light_ground = int(re.findall(r"\d+", ground)[0]) > int(re.findall(r"\d+", ink)[0])
    assert is_light_ground is (scheme == "light")
    await page.screenshot(path=tmp_path / "page.png", full_page=True)


async def test_a_page_from_elsewhere_asks_for_the_key(phone, open_page):
    sandbox, _, _ = phone
    sandbox.phone._api_key = None
    page = await open_page()
    await say(page, "/empty")
    await expect(page.locator("#key-form")).to_be_visible(timeout=10_000)

    await page.get_by_label("needs the API key").fill(API_KEY)
    await page.get_by_role("button", name="Use key").click()

    await expect(page.locator("#ending")).to_have_text("completed", timeout=15_000)


async def test_durations_keep_the_digits_that_tell_them_apart(open_page):
    page = await open_page()
    read = "async (values) => values.map((await import('./static/duration.js')).duration)"
    assert await page.evaluate(read, [None, 0.4, 999.4, 1234, 61_234, 61_789, 720_000, 8_000_000, 2_592_000_000]) == [
        "unknown",
        "0 ms",
        "999 ms",
        "1.23 s",
        "61.2 s",
        "61.8 s",
        "12.0 min",
        "2.2 h",
        "30.0 d",
    ]


async def test_a_message_read_days_later_leaves_the_stream_its_room(open_page):
    """The picture is of the turn; what comes long after it is an arrow at its edge and a figure in the table."""
    page = await open_page()
    draw = """async (reads) => {
        const { drawStream, EXAMPLE } = await import('./static/stream_picture.js');
        const place = document.createElement('div');
        place.style.width = '600px';
        document.body.append(place);
        const messages = EXAMPLE.delivery.messages.map((message, n) => ({ ...message, read_ms: reads[n] }));
        drawStream(place, document.createElement('p'), { ...EXAMPLE, delivery: { messages } });
        const stream = place.querySelector('rect.stream').width.baseVal.value;
        const drawn = [place.querySelectorAll('circle.read').length, place.querySelectorAll('.later').length];
        return [stream > 250, ...drawn, place.querySelector('.message:last-of-type title').textContent];
    }"""
    words = "message 3: queued 2970 ms, accepted 3050 ms, delivered 3480 ms, read"
    assert await page.evaluate(draw, [2500, 3400, 4100]) == [True, 3, 0, f"{words} 4100 ms"]
    assert await page.evaluate(draw, [2500, 3400, 2_592_000_000]) == [True, 2, 1, f"{words} 30.0 d"]


async def test_a_turn_that_never_streamed_is_told_in_the_documents_own_words(open_page):
    page = await open_page()
    tell = "async (trace) => (await import('./static/trace_panel.js')).headline(trace)"
    over = {"timeline": {"completed_ms": 40.2}, "streaming_chunks": [], "headline": "error at agent_request; no answer"}
    assert await page.evaluate(tell, over) == "error at agent_request; no answer"
    assert await page.evaluate(tell, {"timeline": {}, "headline": "not answered"}) == "The agent is thinking…"
