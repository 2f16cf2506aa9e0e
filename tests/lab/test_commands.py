"""The commands of `python -m asag` and `python -m research`."""

import pytest

import asag.__main__
import research.__main__


@pytest.mark.parametrize(("main", "told"), [(asag.__main__.main, "--prompts"), (research.__main__.main, "--captions")])
def test_evaluate_measures_a_pipeline_here_and_the_embedded_models_there(main, told, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("main", [asag.__main__.main, research.__main__.main])
def test_an_unknown_command_is_named_and_the_others_listed(main, capsys):
    assert main(["nonsense"]) == 2
    said = capsys.readouterr().err
    assert "there is no command 'nonsense'" in said
    assert "evaluate" in said
