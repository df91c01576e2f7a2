.PHONY: install test
install: .venv/.installed
.venv/.installed: pyproject.toml
	test -d .venv || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet torch==2.13.0
	.venv/bin/python -m pip install --quiet -e '.[export,dev]'
	touch $@
test: install
	.venv/bin/python -m pytest -q -rs
