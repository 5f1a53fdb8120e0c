import copy
import pickle

import pytest

from einlayers.errors import FieldError


class TestFieldError:
    def test_names_the_field_what_was_expected_and_what_came(self) -> None:
        error = FieldError("rho", expected="a finite exponent between 0 and 1", got=1.5)
        assert str(error) == "rho: expected a finite exponent between 0 and 1, got 1.5"
        assert (error.field, error.expected, error.got) == ("rho", "a finite exponent between 0 and 1", 1.5)

    def test_shows_text_as_text_so_that_a_number_and_its_digits_look_different(self) -> None:
        assert str(FieldError("width", expected="a whole number", got="32")).endswith("got '32'")

    def test_shows_what_utf8_cannot_encode(self) -> None:
        message = str(FieldError("name", expected="printable characters", got="\ud800\0"))
        assert message.encode("utf-8").endswith(rb"got '\ud800\x00'")

    def test_shows_a_number_that_python_refuses_to_print(self) -> None:
        assert str(FieldError("width", expected="a whole number", got=10**5000)).startswith("width: expected")

    def test_is_the_error_of_a_bad_argument(self) -> None:
        with pytest.raises(ValueError, match=r"^rho: expected"):
            raise FieldError("rho", expected="a number", got=None)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_crosses_a_process_border_whole(self, protocol: int) -> None:
        error = FieldError("seeds", expected="names from dense", got=("btt", 1))
        came = pickle.loads(pickle.dumps(error, protocol))
        assert type(came) is FieldError
        assert (came.field, came.expected, came.got, str(came)) == (error.field, error.expected, error.got, str(error))

    def test_copies_whole(self) -> None:
        error = copy.deepcopy(FieldError("seeds", expected="names", got=["btt"]))
        assert (error.field, error.expected, error.got) == ("seeds", "names", ["btt"])
