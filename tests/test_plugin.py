"""What `import verl` runs: it refuses a verl that it was not read against."""

import pytest

from verl_care import plugin


def test_another_verl_is_refused_in_one_line_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(plugin, "version", {"verl": "0.9.2"}.__getitem__)
    monkeypatch.delenv("VERL_CARE_ACCEPT_VERL", raising=False)
    with pytest.raises(RuntimeError, match=r"^verl_care supports verl 0\.9\.1; found 0\.9\.2\. Install .*$"):
        plugin._check_version()
    monkeypatch.setenv("VERL_CARE_ACCEPT_VERL", "0.9.3")
    with pytest.raises(RuntimeError, match="found 0.9.2"):
        plugin._check_version()
    monkeypatch.setenv("VERL_CARE_ACCEPT_VERL", "0.9.2")
    plugin._check_version()
