//! The same input gives the same bits: run after run, on one core or on two.

use rayon::ThreadPoolBuilder;

use super::{CASES, actions, arrays, case_file, engine, fixture};

#[test]
fn two_runs_give_the_same_bits_on_one_core_and_on_two() {
    for case in CASES {
        let case = arrays::read(&case_file(case));
        let mut outcomes = Vec::new();
        for threads in [1, 2] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut engine = engine(&fixture("tiny"));
            // The second run finds tables and buffers that the first one made.
            outcomes.push(pool.install(|| actions(&mut engine, &case)));
            outcomes.push(pool.install(|| actions(&mut engine, &case)));
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn an_engine_remembers_nothing_of_other_inputs() {
    let cases = CASES.map(|case| arrays::read(&case_file(case)));
    let alone = cases.each_ref().map(|case| actions(&mut engine(&fixture("tiny")), case));
    assert!(alone[0] != alone[1], "the cases differ");
    let mut engine = engine(&fixture("tiny"));
    // c has other times, fewer tokens, fewer steps: before and after the others.
    for i in [2, 0, 1, 2, 1, 0] {
        assert_eq!(actions(&mut engine, &cases[i]), alone[i], "case {}", CASES[i]);
    }
}
