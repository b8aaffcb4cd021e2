"""The report: what a study found as figures and as one page. It reads a study and changes nothing."""
