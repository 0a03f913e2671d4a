// Reads the names of IGVM files, one a line, and prints a line for each,
// tab-separated:
//
//   ok  PLATFORMS  INITIALIZATIONS  DIRECTIVES  SAME  DIGEST
//
// The numbers are of headers; SAME is "same" where the crate writes the bytes that
// it read, "stable" where what it writes reads back and is written the same again,
// else "differs"; DIGEST is the launch digest on SEV-SNP, or "-" and the reason for
// none. A file that the crate refuses gives "error" and why.
use igvm::measurement::generate_snp_measurement;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmPlatformHeader};
use igvm_defs::IgvmPlatformType;
use std::error::Error;
use std::io::{BufRead, Write};

fn reasons(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text += &format!(": {s}");
        source = s.source();
    }
    text.replace(['\n', '\t'], " ")
}

fn write(file: &IgvmFile) -> Result<Vec<u8>, igvm::Error> {
    let mut out = Vec::new();
    file.serialize(&mut out)?;
    Ok(out)
}

fn read(name: &str) -> Result<String, Box<dyn Error>> {
    let data = std::fs::read(name)?;
    let file = IgvmFile::new_from_binary(&data, None)?;
    let once = write(&file)?;
    let same = if once == data {
        "same"
    } else if write(&IgvmFile::new_from_binary(&once, None)?)? == once {
        "stable"
    } else {
        "differs"
    };
    let snp = file.platforms().iter().find_map(|p| match p {
        IgvmPlatformHeader::SupportedPlatform(p) if p.platform_type == IgvmPlatformType::SEV_SNP => {
            Some(p.compatibility_mask)
        }
        _ => None,
    });
    // The crate measures an area page by page, however large it says it is.
    let areas: u64 = file
        .directives()
        .iter()
        .map(|d| match d {
            IgvmDirectiveHeader::ParameterArea { number_of_bytes, .. } => *number_of_bytes,
            _ => 0,
        })
        .fold(0, u64::saturating_add);
    let digest = match snp {
        None => "- not for SEV_SNP".to_string(),
        Some(_) if areas > 1 << 30 => "- parameter areas of more than 1 GiB".to_string(),
        Some(mask) => match generate_snp_measurement(file.initializations(), file.directives(), mask) {
            Ok(d) => d.iter().map(|b| format!("{b:02x}")).collect(),
            Err(e) => format!("- {}", reasons(&e)),
        },
    };
    Ok(format!(
        "ok\t{}\t{}\t{}\t{same}\t{digest}",
        file.platforms().len(),
        file.initializations().len(),
        file.directives().len()
    ))
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let name = line.expect("standard input");
        let answer = match std::panic::catch_unwind(|| read(&name).map_err(|e| reasons(e.as_ref()))) {
            Ok(Ok(text)) => text,
            Ok(Err(text)) => format!("error\t{text}"),
            Err(_) => "error\tpanic".to_string(),
        };
        writeln!(out, "{answer}").expect("standard output");
    }
}
