"""Reports: pure functions of a CompileResult, one format a file.

`terminal` is what the commands print, `json_document` report.json, `markdown` report.md, `html` report.html,
`sarif` report.sarif; `verdict` is the judgement that all of them begin with. `facts` and `what_if` measure
and forecast what the other steps of a compile do not need, `failed_run` writes the reports of a compile that
made no package.

Every figure carries what it is: exact (counted), measured (by the vendor's converter or by running the
network), estimated (our forecast), published, or assumed.
"""
