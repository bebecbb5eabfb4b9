"""What becomes HTML, for reports of runs and of benchmarks.

template.py fills in a page with the style page.css.j2 that all pages share; report.html.j2 is the page of a run.
panels.py describes the charts that a system asks for; charts.py draws them as inline SVG.
"""
