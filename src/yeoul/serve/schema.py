"""Bodies of requests. Names and meanings are OpenAI's; those that others have added stand last in each class.

Fields that are not known are ignored, and logged once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

MOST_CHOICES = 32
MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_BIASES = 1024
MOST_ALTERNATIVES = 20
LARGEST = 2**31 - 1

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_STOP)]
Id = Annotated[StrictInt, Field(ge=0, le=LARGEST)]
Count = Annotated[StrictInt, Field(ge=1, le=LARGEST)]


class Body(BaseModel):
    """Takes any further field."""

    model_config = ConfigDict(extra="allow")

    def unknown(self) -> list[str]:
        """Names of fields that nothing here reads."""
        return sorted(self.__pydantic_extra__ or {})


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: StrictBool | None = None


class Sampling(Body):
    """How an answer is drawn, for all endpoints that give one."""

    model: StrictStr | None = Field(None, max_length=1024)
    """None is the first model of the server."""
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None
    ) = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    user: StrictStr | None = None
    state: StrictStr | None = None
    """Ours: the answer stands behind what this state remembers, see `/v1/states`."""
    top_k: Annotated[StrictInt, Field(ge=-1, le=LARGEST)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    ignore_eos: StrictBool | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: StrictStr | list[StrictStr] | list[Id] | list[list[Id]] = ""
    max_tokens: Annotated[StrictInt, Field(ge=0, le=LARGEST)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    best_of: StrictInt | None = None
    response_format: ResponseFormat | None = None


class Part(Body):
    """A piece of a message's content."""

    type: StrictStr
    text: StrictStr | None = None


class CalledFunction(Body):
    """What a tool call calls; the arguments are JSON as a text."""

    name: StrictStr
    arguments: StrictStr = "{}"


class ToolCall(Body):
    """One call of a tool in an assistant's message."""

    id: StrictStr | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message of a conversation."""

    role: StrictStr
    content: StrictStr | list[Part] | None = None
    name: StrictStr | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: StrictStr | None = None


class Function(Body):
    """A function that may be called; its parameters are a JSON schema."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=256, pattern=r"^[\w.\-]+$")]
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """One tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The function that must be called."""

    name: StrictStr


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A schema for the answer."""

    name: StrictStr | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Body):
    """What form an answer has; "grammar" (Lark's syntax, in "grammar") and "regex" (in "pattern") are ours."""

    type: Literal["text", "json_object", "json_schema", "grammar", "regex"]
    json_schema: JsonSchema | None = None
    grammar: StrictStr | None = Field(None, max_length=100_000)
    pattern: StrictStr | None = Field(None, max_length=10_000)


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None


class TokenizeRequest(Body):
    """`POST /tokenize`: of a text, or of a conversation as the model reads it.

    As in llama.cpp and vLLM special tokens are found in the text of a prompt; `parse_special` false takes their
    characters as ordinary text, as all other endpoints do.
    """

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[Message] | None = None
    add_special_tokens: StrictBool = True
    parse_special: StrictBool = True
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: StrictStr | None = None
    tokens: list[Id]


class StateRequest(Body):
    """`POST /v1/states`: the state behind a conversation or a text."""

    model: StrictStr | None = None
    messages: list[Message] | None = None
    prompt: StrictStr | list[Id] | None = None
    name: Annotated[StrictStr, Field(max_length=64)] | None = None


class EmbeddingRequest(Body):
    """`POST /v1/embeddings`."""

    model: StrictStr | None = None
    input: StrictStr | list[StrictStr] | list[Id] | list[list[Id]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None


CompletionRequest.model_rebuild()
