"""Texts that try to leave their place in a page."""

HOSTILE = (
    "<script>document.title='broken'</script>",
    "</script><script>document.title='broken'</script>",
    "<img src=https://example.org/x onerror=alert(1)><!--",
    "\u2028\u2029\u202eabc\u2066\u200f",
    "\0 nul \x1b[31m",
    "\ud800 half a pair \udfff",
    "=HYPERLINK(1)",
    "${7*7} {{7*7}} %s \\u003c",
)
