fn main() {
    let a: Vec<String> = std::env::args().collect();
    let m = pi05_thor::pipeline::Model::open_network(&a[1]).unwrap();
    let mut e = m.load(|_, _| ()).unwrap();
    let c = pi05_thor::verify::Case::read(a[2].as_ref(), e.dims()).unwrap();
    let o = c.run(&mut e).unwrap();
    for c in o.comparisons {
        println!("{:48} {:9.2e} {:9.2e} {:9.2e} {}", c.stage, c.max, c.rms, c.tolerance, c.ok());
    }
    println!("{:?}", o.skipped);
}
