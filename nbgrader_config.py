"""Stock nbgrader on this course's folders: run `nbgrader ...` or JupyterLab from here.

`rnn2gpt release` writes the instructor's notebooks to build/source; students' notebooks are in
exercises/. Collected work lies in submitted/<student>/<assignment>/. `rnn2gpt grade submitted`
writes gradebook.db, autograded/ and feedback/, which Formgrader and `nbgrader export` read.

Stock `nbgrader autograde` works too, with the checks of the notebook itself; it runs students'
code with your rights and trusts what that code says, so keep it for code that you trust.
"""

c = get_config()  # nbgrader hands it in

c.CourseDirectory.source_directory = "build/source"
c.CourseDirectory.release_directory = "exercises"

c.ClearSolutions.text_stub = "*Your answer here.*"

# Formgrader shows what students wrote: no HTML of theirs may act in the grader's browser.
c.HTMLExporter.sanitize_html = True

# An endless loop costs a minute, not the class; a missing cell comes back.
c.ExecutePreprocessor.timeout = 60
c.OverwriteCells.add_missing_cells = True
