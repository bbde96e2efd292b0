"""Request bodies to wire types, and what is wrong with them in the service's words."""

from typing import TypeVar

import msgspec

from moonbase.dialects.surrogates import mended
from moonbase.dialects.wrong_type import out_of_range, wrong_type
from moonbase.errors import InvalidRequest

T = TypeVar("T")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises `InvalidRequest` naming the field that has another type, or for what is no JSON."""
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise out_of_range(str(error), body) or wrong_type(str(error)) from error
        except msgspec.DecodeError:
            whole = mended(body)
            if whole == body:
                raise
            return decode_body(decoder, whole)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("the request body is not valid UTF-8") from error
    except RecursionError as error:
        raise InvalidRequest("the request body is nested too deeply") from error
