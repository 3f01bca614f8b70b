"""The web page in a browser, with a server that says what the test wants."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs fastapi")
pytest.importorskip("uvicorn", reason="the server needs uvicorn")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from serve.stub import Stub, serving  # noqa: E402
from yeoul.data.conversations import read_conversations  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
Page = Any
HANGUL = re.compile("[가-힣]")


@pytest.fixture(scope="module")
def stubbed() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with serving(stub.app()) as address:
        yield stub, address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--renderer-process-limit=1"]
        )
        yield browser
        browser.close()


@pytest.fixture
def stub(stubbed: tuple[Stub, str]) -> Stub:
    stubbed[0].begin()
    return stubbed[0]


@pytest.fixture
def visit(stubbed: tuple[Stub, str], stub: Stub, browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens the page; at the end nothing may have failed in it, and it may have asked nobody else."""
    failures, foreign, contexts = list[str](), list[str](), list[Any]()

    def note(message: Any) -> None:
        # Chromium writes an error for each response of 400 or more; the page tells those itself.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            failures.append(message.text)

    def open_page(
        at: str = stubbed[1], *, width: int = 1280, height: int = 800, language: str = "en-US", **options: Any
    ) -> Page:
        def asked(request: Any) -> None:
            if not request.url.startswith((at + "/", "blob:", "data:")):
                foreign.append(request.url)

        context = browser.new_context(viewport={"width": width, "height": height}, locale=language, **options)
        context.set_default_timeout(5000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", asked)
        page.goto(at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not failures
    assert not foreign


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    found = visit()
    found.wait_for_selector(".about")
    return found


def ask(page: Page, question: str) -> None:
    """Asks by the keyboard and waits for the end of the answer."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    ended(page)


def until(page: Page, condition: str, seconds: float = 5) -> None:
    """Waits for a condition in the page; playwright's own way needs `eval`, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(10)


def ended(page: Page) -> None:
    until(page, "!document.querySelector('[aria-busy]') && !document.getElementById('send').hidden")


def questions(page: Page) -> list[str]:
    return page.locator(".bubble").all_inner_texts()


def answers(page: Page) -> list[str]:
    return page.locator(".prose").all_inner_texts()


def tool(page: Page, name: str, turn: int) -> Any:
    return page.locator(".turn").nth(turn).locator(f'.tools [data-t-label="{name}"]')


def kept(page: Page) -> list[dict[str, Any]]:
    found = page.evaluate("Object.entries(localStorage).filter(([k]) => k.startsWith('yeoul-chat-')).map(([, v]) => v)")
    return [json.loads(value) for value in found]


def test_an_answer_appears_piece_by_piece(page: Page, stub: Stub) -> None:
    stub.delay, stub.answer = 0.02, lambda *_: ["하나 "] * 40
    page.fill("#question", "세어 봐")
    page.press("#question", "Enter")
    until(page, "document.querySelector('.prose')?.innerText.includes('하나 하나')")
    early = answers(page)[0]
    page.evaluate("window.first = document.querySelector('.prose p').firstChild")
    until(page, f"document.querySelector('.prose').innerText.length > {len(early) + 10}")
    assert page.evaluate("window.first.isConnected"), "the text is rendered again instead of growing"
    assert len(early) < 120 * 0.8
    ended(page)
    assert answers(page) == ["하나 " * 40] or answers(page) == [("하나 " * 40).rstrip()]
    assert stub.chats[0]["stream"] and stub.chats[0]["stream_options"] == {"include_usage": True}
    figures = page.inner_text(".figures")
    assert "100 tokens/s" in figures and "397.5 KiB, constant" in figures and "First token" in figures


def test_what_is_finished_is_not_rendered_again(page: Page, stub: Stub) -> None:
    stub.answer = lambda *_: ["한 문단의 글. "] * 20 + ["\n\n"] + ["다음 글. "] * 1500
    page.evaluate(
        """() => {
          window.removed = 0; window.grown = 0;
          new MutationObserver((all) => all.forEach((it) => {
            if (!it.target.closest?.('.prose') && !it.target.parentElement?.closest('.prose')) return;
            window.removed += it.removedNodes.length; window.grown += it.type === 'characterData';
          })).observe(document.getElementById('turns'), {subtree: true, childList: true, characterData: true});
        }"""
    )
    ask(page, "길게")
    assert page.locator(".prose p").count() == 2
    assert page.evaluate("window.removed") <= 2  # each paragraph's raw text once
    assert page.evaluate("window.grown") >= 2


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_ends_the_answer_and_the_request(page: Page, stub: Stub, by: str) -> None:
    stub.delay, stub.answer = 0.02, lambda *_: ["길다 "] * 500
    page.fill("#question", "길게 답해 줘")
    page.press("#question", "Enter")
    until(page, "document.querySelector('.prose')?.innerText.includes('길다 길다')")
    page.click("#stop") if by == "button" else page.keyboard.press("Escape")
    ended(page)
    assert "Stopped" in page.inner_text(".note")
    assert answers(page)[0].count("길다") < 500
    for _ in range(100):
        if stub.left:
            break
        page.wait_for_timeout(20)
    assert stub.left == 1, "the server was not told"
    assert kept(page)[0]["nodes"][1]["answers"][0]["finish"] == "stopped"


def test_answering_again_keeps_the_first_answer_as_a_branch(page: Page, stub: Stub) -> None:
    given = iter(["첫째 답", "둘째 답"])
    stub.answer = lambda *_: [next(given)]
    ask(page, "질문")
    tool(page, "again", 1).click()
    until(page, "document.querySelector('.prose').innerText === '둘째 답'")
    ended(page)
    assert stub.chats[0]["messages"] == stub.chats[1]["messages"]
    assert page.inner_text(".branches") == "2/2"
    page.click('.branches [data-t-label="earlier"]')
    assert answers(page) == ["첫째 답"] and page.inner_text(".branches") == "1/2"
    focused = "document.activeElement.closest('.branches') && document.activeElement.dataset.tLabel"
    assert page.evaluate(focused) == "later", "at the end of one way the keyboard is on the other"
    page.click('.branches [data-t-label="later"]')
    assert answers(page) == ["둘째 답"]


def test_an_edited_question_begins_a_branch_and_the_old_turns_stay(page: Page, stub: Stub) -> None:
    for question in ("하나", "둘", "셋"):
        ask(page, question)
    tool(page, "edit", 2).click()
    page.fill(".editor textarea", "둘이 아니라 넷")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.prose').length === 2")
    ended(page)
    assert questions(page) == ["하나", "둘이 아니라 넷"]
    assert [m["content"] for m in stub.chats[-1]["messages"]][::2] == ["하나", "둘이 아니라 넷"]
    page.click('.branches [data-t-label="earlier"]')
    assert questions(page) == ["하나", "둘", "셋"] and len(answers(page)) == 3
    ask(page, "다섯")  # goes on in the branch that is shown
    assert [m["content"] for m in stub.chats[-1]["messages"]][::2] == ["하나", "둘", "셋", "다섯"]
    tool(page, "edit", 0).click()
    page.keyboard.press("Escape")
    assert questions(page) == ["하나", "둘", "셋", "다섯"]


def test_a_fork_shows_its_cost_and_goes_on_from_there(page: Page, stub: Stub) -> None:
    ask(page, "하나")
    ask(page, "둘")
    tool(page, "fork", 1).click()
    page.wait_for_selector(".pending .cost")
    (state,) = stub.states.values()
    told = page.inner_text(".pending")
    assert [m["role"] for m in state["messages"]] == ["user", "assistant"]
    length = sum(len(m["content"]) for m in state["messages"])
    assert f"State of {length} tokens, 397.5 KiB, kept in 0.5 ms; nothing read again" in " ".join(told.split())
    assert questions(page) == ["하나"]
    ask(page, "셋")
    assert questions(page) == ["하나", "셋"] and "397.5 KiB" in page.inner_text(".forked")
    assert f"{length} of {length + 1} tokens" in page.locator(".figures").nth(1).inner_text()
    page.click('.branches [data-t-label="earlier"]')
    assert questions(page) == ["하나", "둘"]
    tool(page, "fork", 1).click()
    page.get_by_role("button", name="Back to the old branch").click()
    until(page, "!document.querySelector('.pending')")
    page.wait_for_timeout(100)
    assert questions(page) == ["하나", "둘"] and stub.freed == ["state-1"]


def test_two_models_answer_side_by_side_each_from_its_own_answers(page: Page, stub: Stub) -> None:
    page.click("#compare")
    ask(page, "비교해 줘")
    columns = page.locator(".answer")
    assert columns.count() == 2
    texts = columns.all_inner_texts()
    assert "linear: 비교해" in texts[0] and "397.5 KiB, constant" in texts[0]
    assert "softmax: 비교해" in texts[1] and "+6.0 KiB a token" in texts[1] and "of 2,048 tokens" in texts[1]
    for text in texts:
        assert all(name in text for name in ("Speed", "First token", "State", "Reused", "Context"))
    boxes = [columns.nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    ask(page, "또")
    for body in stub.chats[2:]:
        assert body["messages"][1]["content"].startswith(body["model"])
    page.click("#settings-open")
    page.check("#in-turns")
    order = []
    stub.delay, stub.answer = 0.005, lambda model, _: order.append(model) or ["가"] * 20
    ask(page, "차례로")
    assert order == ["linear", "softmax"]


def test_enter_within_a_composition_does_not_send(page: Page, stub: Stub) -> None:
    page.focus("#question")
    keys = page.context.new_cdp_session(page)
    page.evaluate(
        """() => { window.seen = [];
          addEventListener('keydown', (e) => window.seen.push([e.key, e.isComposing]), true); }"""
    )
    for text in ("ㅎ", "하", "한"):
        keys.send("Input.imeSetComposition", {"text": text, "selectionStart": 1, "selectionEnd": 1})
    for code in (229, 13):  # input methods differ in what they say of the key
        for kind in ("rawKeyDown", "keyUp"):
            key = {"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": code}
            keys.send("Input.dispatchKeyEvent", key)
    assert page.evaluate("window.seen") == [["Enter", True]] * 2, "this browser did not compose: the test shows nothing"
    keys.send("Input.insertText", {"text": "한"})
    page.keyboard.type("글")
    # Safari says that the composition is over before it tells the key, which has only its code left.
    page.evaluate(
        """() => { const it = document.getElementById('question');
          it.dispatchEvent(new CompositionEvent('compositionstart', {bubbles: true}));
          it.dispatchEvent(new CompositionEvent('compositionend', {bubbles: true, data: '글'}));
          const key = {key: 'Enter', keyCode: 229, bubbles: true, cancelable: true};
          it.dispatchEvent(new KeyboardEvent('keydown', key)); }"""
    )
    page.wait_for_timeout(100)
    assert not stub.chats and page.input_value("#question") == "한글"
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("줄")
    assert page.input_value("#question") == "한글\n줄"
    page.keyboard.press("Enter")
    ended(page)
    assert [body["messages"][0]["content"] for body in stub.chats] == ["한글\n줄"]


HOSTILE = (
    '<img src=x onerror="window.hit=1"><script>window.hit=1</script> \x1b[31m빨강\x1b[0m \u202e뒤집힘\u202c '
    "[함정](javascript:window.hit=1) ![그림](https://example.org/a.png) <https://example.org>\n\n"
    '- **굵게 <b>x</b>**\n- [집](https://example.org/?a=1&b="2)\n\n```html\n<svg onload=window.hit=1>\n```\n'
)


def test_what_a_model_writes_stays_text(page: Page, stub: Stub) -> None:
    stub.answer = lambda *_: list(HOSTILE)
    ask(page, "<b onmouseover=alert(1)>질문</b>\u202e")
    page.reload()  # and as it is read from the storage
    page.wait_for_selector(".prose")
    assert page.evaluate("window.hit") is None
    prose = page.inner_text(".prose")
    assert '<img src=x onerror="window.hit=1"><script>' in prose and "<svg onload=window.hit=1>" in prose
    assert "\\x1b[31m빨강" in prose and "\\u202e뒤집힘\\u202c" in prose
    assert "[함정](javascript:window.hit=1)" in prose and "굵게 <b>x</b>" in prose
    assert page.locator(".prose :is(img, script, b, iframe), .prose .code svg + *").count() == 0
    links = page.locator(".prose a").evaluate_all("all => all.map((it) => [it.protocol, it.rel, it.target])")
    assert links and all(it == ["https:", "noopener noreferrer nofollow", "_blank"] for it in links)
    assert questions(page) == ["<b onmouseover=alert(1)>질문</b>\\u202e"]
    assert page.inner_text("#list .open") == "<b onmouseover=alert(1)>질문</b>\\u202e"
    assert stub.chats[0]["messages"][0]["content"].endswith("\u202e"), "the model gets what was written"


def test_a_text_that_is_hard_to_parse_does_not_stop_the_page(page: Page, stub: Stub) -> None:
    stub.answer = lambda *_: ["**a" * 6000 + "`" * 6000 + "[" * 6000, "\n\n", "> " * 3000 + "끝", "\n\n", "- " * 3000]
    ask(page, "질문")
    assert "끝" in page.inner_text(".prose")


def test_markdown(page: Page, stub: Stub) -> None:
    stub.answer = lambda *_: list(
        "# 제목\n\n글 **굵게** `코드` 2 * 3 * 4\n\n3. 셋\n4. 넷\n   - 안\n\n> 인용\n\n"
        "```py\n```이 아님\nx = 1\n```\n| 가 | 나 |\n|--|--|\n| 1 | 2 |"
    )
    ask(page, "질문")
    prose = page.locator(".prose")
    assert prose.locator("h4").inner_text() == "제목" and prose.locator("strong").inner_text() == "굵게"
    assert prose.locator("p > code").inner_text() == "코드" and "2 * 3 * 4" in prose.inner_text()
    assert prose.locator("ol").get_attribute("start") == "3" and prose.locator("ol ul li").inner_text() == "안"
    assert prose.locator("blockquote p").inner_text() == "인용"
    assert prose.locator("pre code").inner_text().rstrip("\n") == "```이 아님\nx = 1"
    assert prose.locator("td").all_inner_texts() == ["1", "2"]


def test_a_reload_keeps_conversations_also_one_that_is_being_written(page: Page, stub: Stub) -> None:
    ask(page, "첫 대화")
    page.click("#new")
    stub.delay, stub.answer = 0.02, lambda *_: ["조금 "] * 300
    page.fill("#question", "둘째 대화")
    page.press("#question", "Enter")
    until(page, "document.querySelector('.prose')?.innerText.includes('조금 조금')")
    page.reload()
    page.wait_for_selector(".prose")
    assert questions(page) == ["둘째 대화"] and "조금" in answers(page)[0] and "Stopped" in page.inner_text(".note")
    page.get_by_role("button", name="첫 대화").click()
    assert questions(page) == ["첫 대화"] and answers(page)[0].startswith("linear: 첫 대화")


def test_export_delete_import(page: Page, stub: Stub, tmp_path: Path) -> None:
    page.click("#settings-open")
    page.fill("#system", "짧게 답한다.")
    ask(page, "하나")
    ask(page, "둘")
    tool(page, "again", 3).click()
    ended(page)
    page.get_by_role("button", name="Rename").click()
    page.fill("#ask-input", "내 대화")
    page.keyboard.press("Enter")
    before = kept(page)[0]
    assert before["title"] == "내 대화"
    with page.expect_download() as got:
        page.get_by_role("button", name="Export", exact=True).click()
    file = tmp_path / got.value.suggested_filename
    got.value.save_as(file)
    assert file.name == "내-대화.json"
    (read,) = read_conversations([file])  # what the trainer and `yeoul chat` read
    assert [m["role"] for m in read.messages] == ["system", "user", "assistant", "user", "assistant"]
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Cancel").click()
    assert len(kept(page)) == 1
    page.get_by_role("button", name="Delete").click()
    page.click("#ask-yes")
    until(page, "!document.querySelector('.turn')")
    assert kept(page) == []
    page.set_input_files("#file", file)
    page.wait_for_selector(".turn")
    after = kept(page)[0]
    assert {**after, "id": ""} == {**before, "id": ""}
    assert page.inner_text(".branches") == "2/2"
    with page.expect_download() as got:
        page.click("#export")
    assert got.value.suggested_filename == "yeoul-conversations.jsonl"


def test_a_file_of_the_terminal_can_be_gone_on_with(page: Page, stub: Stub, tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "너는 여울이다."},
        {"role": "user", "content": "내 이름은 민준이야."},
        {"role": "assistant", "content": "반가워요."},
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text(
        json.dumps({"messages": said}) + "\n" + json.dumps({"messages": said[1:2]}) + "\n", encoding="utf-8"
    )
    page.set_input_files("#file", file)
    page.wait_for_selector(".turn")
    assert "2 conversations imported." in page.inner_text("#notice")
    page.get_by_role("button", name="Answer", exact=True).click()  # the second ends with a question
    ended(page)
    assert stub.chats[-1]["messages"] == said[1:2]
    page.locator("#list .open").nth(1).click()
    ask(page, "내 이름은?")
    assert stub.chats[-1]["messages"] == [*said, {"role": "user", "content": "내 이름은?"}]


def node(parent: int, role: str) -> dict[str, Any]:
    return {"parent": parent, "role": role, "content": "x", "answers": [{"model": "m", "content": "x"}]}


def test_a_file_cannot_name_states_to_let_go(page: Page, stub: Stub) -> None:
    ask(page, "하나")
    tool(page, "fork", 1).click()
    page.wait_for_selector(".cost")
    ask(page, "둘")
    with page.expect_download() as got:
        page.get_by_role("button", name="Export", exact=True).click()
    file = got.value.path().read_bytes()
    for freed in ([], ["state-0"]):  # imported, and the one that has made it
        if not freed:
            page.set_input_files("#file", {"name": "a.json", "mimeType": "application/json", "buffer": file})
            until(page, "document.querySelectorAll('#list .open').length === 2")
        else:
            page.locator("#list .open").first.click()
        page.get_by_role("button", name="Delete").click()
        page.click("#ask-yes")
        until(page, "!document.querySelector('.turn')")
        page.wait_for_timeout(100)
        assert stub.freed == freed


BAD_FILES = {
    "not JSON": "안녕",
    "something else": '{"a": 1}',
    "numbers": "[1, 2, null]",
    "a loop": json.dumps({"nodes": [node(0, "user")]}),
    "the future": json.dumps({"nodes": [node(-1, "user"), node(5, "assistant")]}),
    "no order": json.dumps({"nodes": [node(-1, "assistant")]}),
    "no content": json.dumps({"nodes": [{"parent": -1, "role": "user", "content": {"a": 1}}]}),
    "roles": json.dumps({"messages": [{"role": "tool", "content": "x"}]}),
    "depth": "[" * 100_000,
    "nothing": "",
}


def test_files_that_are_no_conversation_are_refused_in_one_sentence(page: Page, tmp_path: Path) -> None:
    for name, text in BAD_FILES.items():
        file = tmp_path / f"{name}.json"
        file.write_text(text, encoding="utf-8")
        page.evaluate("document.getElementById('notice').hidden = true")
        page.set_input_files("#file", file)
        until(page, "!document.getElementById('notice').hidden")
        assert page.inner_text("#notice span") == f"{name}.json holds no conversation that this page can read."
    assert kept(page) == []


def test_damaged_storage_is_left_alone(page: Page) -> None:
    page.evaluate("localStorage['yeoul-chat-bad'] = '{'; localStorage['yeoul-settings'] = '[1'")
    ask(page, "질문")
    page.reload()
    page.wait_for_selector(".prose")
    assert page.locator("#list .open").count() == 1 and page.evaluate("localStorage['yeoul-chat-bad']") == "{"


def test_a_full_storage_is_told_and_the_conversation_goes_on(page: Page) -> None:
    page.evaluate("localStorage.other = 'x'.repeat(5242880 - 60)")
    ask(page, "질문")
    assert "storage is full" in page.inner_text("#notice")
    ask(page, "또")
    assert questions(page) == ["질문", "또"]


def test_a_key_is_asked_for_and_kept_for_the_tab(visit: Callable[..., Page], stub: Stub) -> None:
    stub.key = "secret"
    page = visit()
    page.wait_for_selector("#ask[open]")
    page.fill("#ask-input", "wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('ask-text').textContent.includes('does not accept')")
    assert page.get_attribute("#ask-input", "type") == "password" and page.input_value("#ask-input") == ""
    page.fill("#ask-input", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector(".about")
    ask(page, "질문")
    page.reload()
    until(page, "document.getElementById('model-0').value === 'linear'")
    assert not page.evaluate("document.getElementById('ask').open")
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
    stub.key = "another"  # it was changed: asked for again, by the request that needs it
    page.fill("#question", "또")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector(".failed")
    assert page.inner_text(".failed") == "The server requires a key."


REFUSALS = [
    (403, "this origin may not ask", "The server refused: this origin may not ask"),
    (400, "--temperature is 9", "The server refused: --temperature is 9"),
    (404, "no model", "The server does not have this model any more; choose another."),
    (413, "long", "The conversation is too large for this server; shorten it or begin a new one."),
    (429, "full", "The server has no room at the moment; try again a little later."),
    (500, "", "The server failed (500)."),
    (503, "", "The server is starting or shutting down; try again a little later."),
]


def test_errors_are_one_sentence_and_can_be_tried_again(page: Page, stub: Stub) -> None:
    for status, said, sentence in REFUSALS:
        stub.refuse = (status, said)
        page.click("#new")
        ask(page, "질문")
        assert page.locator(".failed").all_inner_texts() == [sentence]
    stub.refuse = None
    page.get_by_role("button", name="Try again").click()
    ended(page)
    assert answers(page)[0].startswith("linear: 질문") and page.inner_text(".branches") == "2/2"


def test_errors_in_mid_stream_keep_what_came(page: Page, stub: Stub) -> None:
    stub.break_after = 5
    ask(page, "질문")
    assert page.inner_text(".failed") == "The server failed (500): the model is gone"
    assert answers(page) == ["linea"]
    stub.break_after, stub.drop_after = None, 3
    page.click("#new")
    ask(page, "질문")
    assert page.inner_text(".failed") == "The connection broke before the answer was complete." and answers(page) == [
        "lin"
    ]
    page.context.set_offline(True)
    page.click("#new")
    ask(page, "질문")
    assert page.inner_text(".failed") == "The server cannot be reached; is `yeoul serve` still running?"
    page.context.set_offline(False)


def test_languages(visit: Callable[..., Page], stub: Stub) -> None:
    page = visit(language="ko-KR")
    page.wait_for_selector(".about")
    assert page.evaluate("document.documentElement.lang") == "ko" and page.inner_text("#new") == "새 대화"
    page.click("#settings-open")
    ask(page, "질문")
    stub.delay, stub.answer = 0.02, lambda *_: ["글 "] * 50
    page.fill("#question", "길게")
    page.press("#question", "Enter")
    until(page, "document.querySelectorAll('.prose')[1]?.innerText.includes('글 글')")
    korean = page.inner_text("body")
    page.get_by_role("button", name="EN").click()  # while an answer is written: it goes on
    ended(page)
    assert answers(page)[1].count("글") == 50
    english = page.inner_text("#settings") + page.inner_text("header") + page.inner_text(".figures >> nth=0")
    assert not HANGUL.search(english) and "New chat" in page.inner_text("#side")
    assert "p가 낮을수록 남는 토큰이 적고" in korean and "a lower p keeps fewer tokens" in english
    labels = page.locator("[aria-label], [placeholder]").evaluate_all(
        "all => all.map((it) => (it.getAttribute('aria-label') || '') + (it.placeholder || ''))"
    )
    assert {label for label in labels if HANGUL.search(label)} == {"Language, 언어"}
    page.reload()
    page.wait_for_selector(".prose")
    assert page.evaluate("document.documentElement.lang") == "en", "the choice is remembered"


@pytest.mark.parametrize("language", ["ko-KR", "en-US"])
def test_no_scrolling_sideways_on_a_phone(visit: Callable[..., Page], stub: Stub, language: str) -> None:
    stub.models = {"아주-긴-이름의-모델-" * 6: stub.models["linear"], "b" * 120: stub.models["softmax"]}
    stub.answer = lambda *_: [
        "a" * 300 + "\n\n```\n" + "b" * 300 + "\n```\n\n| " + " | ".join(["칸"] * 40) + " |\n" + "|--" * 40 + "|"
    ]
    page = visit(width=390, height=844, language=language, has_touch=True)
    page.wait_for_selector(".about")
    inside = """[...document.querySelectorAll('html, #scroll, header, .foot, #settings')].every((it) =>
      it.scrollWidth <= it.clientWidth)"""
    assert page.evaluate(inside)
    page.click("#compare")
    ask(page, "c" * 200)
    tool(page, "fork", 1).click()
    page.wait_for_selector(".cost")
    assert page.evaluate(inside)
    page.click("#settings-open")
    assert page.evaluate(inside)
    page.keyboard.press("Escape")
    page.click("#side-open")
    box = page.locator("#side").bounding_box()
    assert box["x"] == 0 and box["width"] < 390
    page.keyboard.press("Escape")
    assert not page.locator("#side").is_visible()


def test_only_what_was_changed_is_sent(page: Page, stub: Stub) -> None:
    ask(page, "질문")
    assert set(stub.chats[-1]) == {"model", "messages", "stream", "stream_options"}
    page.click("#settings-open")
    page.fill("#set-temperature", "0.3")
    page.fill("#set-top_p", "1.5")
    assert page.inner_text("#wrong-top_p") == "A number from 0.01 to 1, please."
    page.fill("#set-seed", "7")
    page.fill("#set-max_tokens", "2.5")
    page.fill("#set-stop", "끝\n\n그만")
    page.fill("#system", "짧게")
    ask(page, "또")
    body = stub.chats[-1]
    assert {k: body.get(k) for k in ("temperature", "top_p", "seed", "max_tokens", "stop")} == {
        "temperature": 0.3, "top_p": None, "seed": 7, "max_tokens": None, "stop": ["끝", "그만"],
    }  # fmt: skip
    assert body["messages"][0] == {"role": "system", "content": "짧게"}
    page.reload()
    page.wait_for_selector(".prose")
    until(page, "document.getElementById('set-temperature').value === '0.3'")
    page.click("#defaults")
    ask(page, "또")
    assert "temperature" not in stub.chats[-1] and "stop" not in stub.chats[-1]
    page.fill("#set-max_tokens", "5")
    ask(page, "또")
    assert "Cut off at the token limit" in page.locator(".note").last.inner_text()


def test_it_scrolls_only_while_the_reader_is_at_the_end(page: Page, stub: Stub) -> None:
    stub.delay, stub.answer = 0.005, lambda *_: ["한 줄\n\n"] * 200
    page.fill("#question", "길게")
    page.press("#question", "Enter")
    end = """(() => { const it = document.getElementById('scroll');
      return it.scrollHeight - it.scrollTop - it.clientHeight; })()"""
    until(page, "document.getElementById('scroll').scrollTop > 100")
    assert page.evaluate(end) < 60
    page.evaluate("document.getElementById('scroll').scrollTop = 20")
    ended(page)
    assert page.evaluate("document.getElementById('scroll').scrollTop") == 20
    page.click("#to-end")
    until(page, f"{end} < 2")


def test_keyboard_and_screen_reader(page: Page, stub: Stub) -> None:
    ask(page, "질문")
    assert page.inner_text("#said") == "linear: linear: 질문에 대한 1번째 말의 답입니다."
    page.click("#settings-open")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')].filter((it) =>
          it.checkVisibility() && it.getAttribute('aria-hidden') !== 'true' &&
          !(it.getAttribute('aria-label') || it.innerText || it.labels?.length)).map((it) => it.outerHTML)"""
    )
    assert nameless == []
    marked = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')].filter((it) =>
          it.checkVisibility() && !it.disabled && it.tabIndex >= 0).map((it, n) => it.dataset.mark = String(n))"""
    )
    wanted = set(marked)
    page.focus(".skip")
    for _ in range(len(wanted) + 8):
        page.keyboard.press("Tab")
        wanted.discard(page.evaluate("document.activeElement.dataset.mark"))
        outline = page.evaluate(
            """() => { const it = document.activeElement, s = getComputedStyle(it);
              return s.outlineStyle !== 'none' || it.id === 'question' || it === document.body; }"""
        )
        assert outline, page.evaluate("document.activeElement.outerHTML")
    assert not wanted, page.evaluate(f"document.querySelector('[data-mark=\"{min(wanted)}\"]').outerHTML")


def test_themes(visit: Callable[..., Page]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page = visit(color_scheme="dark")
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(paper) == "rgb(255, 255, 255)" != dark
    page.reload()
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert visit(color_scheme="light").evaluate(paper) == "rgb(255, 255, 255)"


def test_two_tabs_keep_each_others_conversations(page: Page) -> None:
    ask(page, "첫째 탭")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector(".prose")
    other.click("#new")
    ask(other, "둘째 탭")
    page.get_by_role("button", name="둘째 탭").click()
    assert questions(page) == ["둘째 탭"]
    ask(other, "하나 더")  # the same conversation in both: neither writes over what the other has
    until(page, "document.querySelectorAll('.prose').length === 2")
    ask(page, "또 하나")
    until(other, "document.querySelectorAll('.prose').length === 3")
    assert questions(other) == questions(page) == ["둘째 탭", "하나 더", "또 하나"]
    assert sorted(len(it["nodes"]) for it in kept(page)) == [2, 6]


def test_with_models_of_a_real_server(visit: Callable[..., Page], server: Any) -> None:
    """What the stub says above is what a server says: streaming, figures, states, and two models at once."""
    page = visit(server.url)
    page.wait_for_selector(".about")
    page.click("#settings-open")
    page.fill("#set-temperature", "0")
    page.select_option("#model-0", "linear")
    ask(page, "옛날 옛적에 토끼가 살았습니다.")
    ask(page, "그래서 어떻게 되었나요?")
    first, second = page.locator(".figures").all_inner_texts()
    assert "constant" in first and "tokens/s" in first and "First token" in first
    cached, read = re.search(r"Reused\s+([\d,]+) of ([\d,]+) tokens", second).groups()
    assert 0 < int(cached) < int(read)
    tool(page, "fork", 1).click()
    page.wait_for_selector(".pending .cost")
    assert re.search(r"State of \d+ tokens, [\d.]+ (KiB|MiB), kept in [\d.]+ ms", page.inner_text(".cost"))
    ask(page, "그래서 어떻게 되었나요?")
    assert page.locator(".branches").count() == 1 and page.inner_text(".branches") == "2/2"
    forked = answers(page)[1]
    page.click('.branches [data-t-label="earlier"]')
    assert answers(page)[1] == forked, "greedy, so it is the same answer from the kept state"
    page.click("#compare")
    page.select_option("#model-1", "softmax")
    ask(page, "둘이 함께 답해 주세요.")
    columns = page.locator(".several .answer").all_inner_texts()
    assert len(columns) == 2 and "constant" in columns[0] and "a token" in columns[1]
    assert page.locator(".failed").count() == 0
    page.click("#compare")
    page.fill("#set-max_tokens", "100000")
    page.fill("#question", "끝없이")
    page.press("#question", "Enter")
    until(page, "document.querySelector('.turn:last-child .prose')?.innerText.length > 100", 20)
    page.keyboard.press("Escape")
    ended(page)
    assert page.locator(".note").last.inner_text() in ("Stopped", "")
    page.fill("#set-max_tokens", "8")
    ask(page, "짧게")
    assert page.locator(".failed").count() == 0
