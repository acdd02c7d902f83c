import pytest

from tests import fakes
from tests.service import served


@pytest.mark.parametrize("kind", fakes.KINDS)
async def test_smoke(kind: str) -> None:
    desk = fakes.ToolDesk()
    model = fakes.ScriptedModel(
        script=fakes.calls_then_answers("look", {"order": "7"}, turns=2, parallel=2)
    )
    async with served({"a": fakes.build(kind, model, desk.tools())}) as s:
        r = await s.ask("q", include_steps=True)
        print(r.json())
        assert r.status_code == 200, r.text
        assert r.json()["iterations"] == 2
        assert r.json()["tool_calls"] == 4


@pytest.mark.parametrize("kind", fakes.KINDS)
@pytest.mark.parametrize("tool", ["nap", "stubborn", "block", "hog"])
async def test_timeout(kind: str, tool: str) -> None:
    desk = fakes.ToolDesk(seconds=2)
    model = fakes.ScriptedModel(script=fakes.calls_then_answers(tool))
    async with served({"a": fakes.build(kind, model, desk.tools())}) as s:
        r = await s.ask("q", timeout=0.5)
        print(r.json(), r.elapsed)
        assert r.status_code == 504, r.text


@pytest.mark.parametrize("kind", fakes.KINDS)
@pytest.mark.parametrize("limit", [1, 3, 10])
@pytest.mark.parametrize("parallel", [1, 3])
async def test_limit(kind: str, limit: int, parallel: int) -> None:
    desk = fakes.ToolDesk(seconds=2)
    model = fakes.ScriptedModel(script=fakes.never_stops("look", parallel=parallel))
    async with served({"a": fakes.build(kind, model, desk.tools())}) as s:
        r = await s.ask("q", max_iterations=limit)
        print(r.json(), r.elapsed)
        assert r.status_code == 200, r.text
        assert r.json()["iterations"] == limit
        assert len(model.asked) == limit + 1
        assert r.json()["tool_calls"] == limit * parallel
        assert model.asked[-1][0].text == fakes.SYSTEM_PROMPT
