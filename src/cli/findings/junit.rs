//! Findings as `JUnit` XML: what test reports of CI systems read.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::verify::Finding;

/// One suite for the artifact: a failed case for each finding, named by rule and tensor; one case that passed where nothing
/// was found, since readers take an empty suite for a broken run.
///
/// # Errors
/// When the report cannot be written as XML.
pub fn junit(name: &str, findings: &[Finding]) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new(name);
    if findings.is_empty() {
        suite.add_test_case(TestCase::new("policy", TestCaseStatus::success()));
    }
    for finding in findings {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_type(finding.rule).set_message(finding.message.clone());
        if let (Some(value), Some(limit)) = (&finding.value, &finding.limit) {
            status.set_description(format!("found {value}, expected {limit}"));
        }
        let about = finding.tensor.as_deref().unwrap_or("the artifact");
        let mut case = TestCase::new(format!("{}: {about}", finding.rule), status);
        case.set_classname(format!("bantam.{}", finding.rule));
        suite.add_test_case(case);
    }
    let mut report = Report::new("bantam check");
    report.add_test_suite(suite);
    report.to_string()
}
