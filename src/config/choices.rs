//! Parameters that are one of a few words, as enums. Each enum knows its words; the table takes them from here.
//! The first word is the default. Those of the sampler are in [`crate::model::sampler`], those of control in
//! [`crate::control::splice`]; [`Backend`] is more than a word.

use crate::choices::choices;
pub use crate::control::splice::Execution;
pub use crate::engine::backend::Backend;

choices! {
    /// Which robot adapter surrounds the network.
    RobotKind {
        /// Two ViperX arms, 14 joints.
        #[default]
        Aloha = "aloha",
        /// One Franka arm, joint velocities.
        Droid = "droid",
        /// The LIBERO simulator, end-effector displacements.
        Libero = "libero",
        /// Whatever the parameters say.
        Generic = "generic",
    }
}

choices! {
    /// Number format of the weights in the engine.
    DtypeChoice {
        /// f32 on the CPU, bf16 on CUDA.
        #[default]
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit floats, needs calibration.
        Fp8 = "fp8",
    }
}

choices! {
    /// How camera images are resized to the model's square.
    ResizeChoice {
        /// As the checkpoint's layout was trained.
        #[default]
        Auto = "auto",
        /// Pillow's antialiased bilinear on bytes (openpi).
        Pillow = "pillow",
        /// torch's bilinear on floats, not antialiased (LeRobot).
        Torch = "torch",
    }
}

choices! {
    /// The text around the task.
    PromptFormatChoice {
        /// As the checkpoint says.
        #[default]
        Auto = "auto",
        /// `Task: …, State: …;\nAction: `.
        State = "state",
        /// The task and a newline (openpi's pi05_libero).
        TaskNewline = "task_newline",
        /// `Task: …;\nAction: ` (LeRobot without state).
        Task = "task",
    }
}

choices! {
    /// A yes or no that the checkpoint may decide.
    AutoBool {
        /// As the checkpoint says.
        #[default]
        Auto = "auto",
        /// Yes.
        True = "true",
        /// No.
        False = "false",
    }
}

choices! {
    /// Which statistics normalise state and actions.
    NormalizationChoice {
        /// As the checkpoint says.
        #[default]
        Auto = "auto",
        /// 1 % and 99 % quantiles to ±1.
        Quantiles = "quantiles",
        /// Mean 0, standard deviation 1.
        MeanStd = "mean_std",
        /// Minimum and maximum to ±1.
        MinMax = "min_max",
    }
}

choices! {
    /// Message type of the commands.
    CommandType {
        /// `std_msgs/Float64MultiArray`, per tick.
        #[default]
        Float64MultiArray = "float64_multi_array",
        /// `sensor_msgs/JointState`, per tick.
        JointState = "joint_state",
        /// `trajectory_msgs/JointTrajectory`, per chunk.
        JointTrajectory = "joint_trajectory",
    }
}
