"""Conversations, whatever the wire format that they came in."""

from collections.abc import Sequence

from sizewise.serve.job import ToolCall, Turn


def paired(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Give each result of a tool the name and the id of the call that it answers, and each call an id."""
    paired: list[Turn] = []
    waiting: list[ToolCall] = []
    for place, turn in enumerate(turns):
        if turn.tool_calls:
            waiting = [
                ToolCall(call.name, call.arguments, call.id or f"call_{place}_{number}")
                for number, call in enumerate(turn.tool_calls)
            ]
            turn = Turn(turn.role, turn.content, turn.thinking, tuple(waiting), images=turn.images)
        elif turn.role == "tool" and waiting:
            call = _answered(turn, waiting)
            waiting.remove(call)
            turn = Turn("tool", turn.content, "", (), turn.tool_name or call.name, call.id, turn.images)
        paired.append(turn)
    return tuple(paired)


def _answered(result: Turn, waiting: Sequence[ToolCall]) -> ToolCall:
    """The call that a result belongs to."""
    by_id = (call for call in waiting if result.tool_call_id and call.id == result.tool_call_id)
    by_name = (call for call in waiting if result.tool_name and call.name == result.tool_name)
    return next(by_id, None) or next(by_name, None) or waiting[0]
