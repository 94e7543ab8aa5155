"""What the pytest plugin does once a test asks for it; nothing here is loaded before.

| module | gives |
|---|---|
| `marks` | the options of `@pytest.mark.crosscheck`, and what a test is parametrised over |
| `checking` | the `crosscheck` fixture |
| `golden` | the `crosscheck_golden` fixture |
| `pages` | names of the HTML pages, one for each check of each test |
| `shown` | how a divergence is printed, and the line in the short summary |
"""
